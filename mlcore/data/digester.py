"""Digests computed on the way of a transfer."""

import hashlib
import mmap
import os
from collections.abc import Iterable

# Measured: half a megabyte at a time stays in the processor's cache on its way from the socket through the digest to
# the file, and leaves little to Python. Hashing in a second thread was no faster on the clock, since each byte went
# through the caches of two cores.
_PIECE_BYTES = 512 << 10


class Digester:
    """Hashes bytes in the order in which they are put into its buffer.

    Args:
        algorithms: Names that hashlib knows.
    """

    def __init__(self, algorithms: Iterable[str]) -> None:
        self._algorithms = tuple(algorithms)
        self.position = 0
        self._hashes = {name: hashlib.new(name) for name in self._algorithms}
        # Whole pages, which the kernel copies at the least cost: a third less than at bytearray's address.
        self.buffer = memoryview(mmap.mmap(-1, _PIECE_BYTES))

    def add(self, count: int) -> None:
        """Hash the first `count` bytes of the buffer."""
        self.position += count
        for digest in self._hashes.values():
            digest.update(self.buffer[:count])

    def start_at(self, descriptor: int, position: int) -> None:
        """Take the first `position` bytes of a file as hashed; they are read unless they are known already."""
        if self.position == position:
            return
        self._hashes = {name: hashlib.new(name) for name in self._algorithms}
        self.position = 0
        while self.position < position:
            count = os.preadv(descriptor, [self.buffer[: position - self.position]], self.position)
            if count == 0:
                raise OSError("the file became shorter while it was read")
            self.add(count)

    def hexdigests(self) -> dict[str, str]:
        """Digest of all bytes so far, for each algorithm."""
        return {name: digest.hexdigest() for name, digest in self._hashes.items()}
