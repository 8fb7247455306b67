"""Digests computed beside a transfer, in a second thread, so that hashing costs no time on the clock."""

import hashlib
import os
import queue
import threading
from collections.abc import Iterable

# Measured: pieces that stay in the processor's cache between reading, writing and hashing, but few hand-overs between
# the two threads, each of which costs a fight for the interpreter's lock.
PIECE_BYTES = 256 << 10
_BLOCK_BYTES = 1 << 20
_BLOCKS = 3


class Digester:
    """Hashes bytes in the order in which they are put into its buffers.

    The buffers are used again and again, so memory stays small and is allocated once.

    Args:
        algorithms: Names that hashlib knows.
    """

    def __init__(self, algorithms: Iterable[str]) -> None:
        self._algorithms = tuple(algorithms)
        self.position = 0
        self._hashes = {name: hashlib.new(name) for name in self._algorithms}
        self._free: queue.SimpleQueue[memoryview] = queue.SimpleQueue()
        self._work: queue.SimpleQueue[tuple[memoryview, int] | None] = queue.SimpleQueue()
        for _ in range(_BLOCKS):
            self._free.put(memoryview(bytearray(_BLOCK_BYTES)))
        self._block = self._free.get()
        self._filled = 0
        self._thread = threading.Thread(target=self._run, name="digest", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while (item := self._work.get()) is not None:
            block, length = item
            for digest in self._hashes.values():
                digest.update(block[:length])
            self._free.put(block)

    def buffer(self) -> memoryview:
        """Where to put the next bytes; tell how many with `add`."""
        return self._block[self._filled : self._filled + PIECE_BYTES]

    def add(self, count: int) -> None:
        """Hash the first `count` bytes of `buffer()`."""
        self.position += count
        self._filled += count
        if self._filled == _BLOCK_BYTES:
            self._hand_over()

    def _hand_over(self) -> None:
        self._work.put((self._block, self._filled))
        self._block, self._filled = self._free.get(), 0

    def _drain(self) -> None:
        """Wait until everything is hashed."""
        self._hand_over()
        for block in [self._free.get() for _ in range(_BLOCKS - 1)]:
            self._free.put(block)

    def start_at(self, descriptor: int, position: int) -> None:
        """Take the first `position` bytes of a file as hashed; they are read unless they are known already."""
        if self.position == position:
            return
        self._drain()
        self._hashes = {name: hashlib.new(name) for name in self._algorithms}
        self.position = 0
        while self.position < position:
            count = os.preadv(descriptor, [self.buffer()[: position - self.position]], self.position)
            if count == 0:
                raise OSError("the file became shorter while it was read")
            self.add(count)

    def hexdigests(self) -> dict[str, str]:
        """Digest of all bytes so far, for each algorithm."""
        self._drain()
        return {name: digest.hexdigest() for name, digest in self._hashes.items()}

    def close(self) -> None:
        """End the thread."""
        self._work.put(None)
        self._thread.join()
