"""Digests computed beside a transfer, in a second thread, so that hashing costs no time on the clock."""

import hashlib
import os
import queue
import threading
from collections.abc import Iterable

BLOCK_BYTES = 256 << 10  # larger blocks fall out of the processor's cache between reading, hashing and writing
_BLOCKS = 4


class Digester:
    """Hashes blocks in the order in which they are submitted.

    The blocks are a few buffers that are used again and again, so memory stays small and is allocated once.

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
            self._free.put(memoryview(bytearray(BLOCK_BYTES)))
        self._thread = threading.Thread(target=self._run, name="digest", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while (item := self._work.get()) is not None:
            buffer, length = item
            for digest in self._hashes.values():
                digest.update(buffer[:length])
            self._free.put(buffer)

    def lease(self) -> memoryview:
        """A buffer to fill; give it back with `submit`, with length 0 if nothing came."""
        return self._free.get()

    def submit(self, buffer: memoryview, length: int) -> None:
        """Hash the first `length` bytes of a leased buffer, which must not be written to any more."""
        self.position += length
        self._work.put((buffer, length))

    def _drain(self) -> None:
        for buffer in [self._free.get() for _ in range(_BLOCKS)]:
            self._free.put(buffer)

    def start_at(self, descriptor: int, position: int) -> None:
        """Take the first `position` bytes of a file as hashed; they are read unless they are known already."""
        if self.position == position:
            return
        self._drain()
        self._hashes = {name: hashlib.new(name) for name in self._algorithms}
        self.position = 0
        while self.position < position:
            buffer = self.lease()
            length = os.preadv(descriptor, [buffer[: position - self.position]], self.position)
            self.submit(buffer, length)
            if length == 0:
                raise OSError("the file became shorter while it was read")

    def hexdigests(self) -> dict[str, str]:
        """Digest of all bytes so far, for each algorithm."""
        self._drain()
        return {name: digest.hexdigest() for name, digest in self._hashes.items()}

    def close(self) -> None:
        """End the thread."""
        self._work.put(None)
        self._thread.join()
