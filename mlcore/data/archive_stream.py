"""The bytes of an archive, decompressed, read forward through one buffer."""

import bz2
import io
import lzma
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Literal

from mlcore.runtime.errors import DataError, UsageError

Format = Literal["tar", "tar.gz", "tar.bz2", "tar.xz", "zip"]

# Large enough for few system calls, small enough to stay in the processor's cache between decoding and writing.
_BUFFER_BYTES = 256 << 10
_MAX_HEADER_BYTES = 1 << 20
# A small archive may expand by any ratio up to here: a directory of empty files is nearly all tar headers.
_FREE_BYTES = 64 << 20


def archive_format(path: Path) -> Format:
    """The format, from the file's first bytes; its name may say anything.

    Raises:
        UsageError: There is no such file.
        DataError: It is no archive.
    """
    try:
        if path.exists() and not path.is_file():
            raise UsageError(f"--archive={path}: is no regular file")  # it is read more than once
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise UsageError(f"--archive={path}: cannot be read ({error.strerror})") from error
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "zip"
    if head.startswith(b"\x1f\x8b"):
        return "tar.gz"
    if head.startswith(b"BZh"):
        return "tar.bz2"
    if head.startswith(b"\xfd7zXZ\x00"):
        return "tar.xz"
    if len(head) == 512 and (head[257:262] == b"ustar" or _has_tar_checksum(head)):
        return "tar"
    what = "is empty" if not head else "is no archive"
    raise DataError(f"{path}: {what}; expected tar, tar.gz, tar.bz2, tar.xz or zip")


def _has_tar_checksum(head: bytes) -> bool:
    """Whether the block is a header of the oldest tar format, which has no magic number."""
    digits = head[148:156].strip(b" \x00")
    try:
        return int(digits, 8) == sum(head[:148]) + 8 * 32 + sum(head[156:])
    except ValueError:
        return False


def _decoder(file: IO[bytes], kind: Format) -> Any:
    if kind == "tar.gz":
        from isal import igzip

        return igzip.open(file)
    if kind == "tar.bz2":
        return bz2.open(file)
    return lzma.open(file) if kind == "tar.xz" else file


class ArchiveStream:
    """Reads a plain or compressed tar forward.

    Args:
        path: The archive.
        kind: Its format.
        max_ratio: Bytes after decompression for each byte before.
        stopping: Ends the reading when set.
        on_bytes: Called with each number of bytes of the archive that were read.
    """

    def __init__(
        self,
        path: Path,
        kind: Format,
        *,
        max_ratio: float,
        stopping: threading.Event,
        on_bytes: Callable[[int], object],
    ) -> None:
        self.path = path
        self._file = io.FileIO(path)
        self._source = _decoder(self._file, kind)
        size = os.fstat(self._file.fileno()).st_size
        self._max_ratio = max_ratio
        self._limit = max(size * max_ratio, _FREE_BYTES)
        self._stopping, self._on_bytes = stopping, on_bytes
        self._reported = 0
        self._buffer = memoryview(bytearray(_BUFFER_BYTES))
        self._start = self._end = 0
        self._filled = 0  # bytes of the stream that ever were in the buffer

    def close(self) -> None:
        """Close the file."""
        self._source.close()
        self._file.close()

    def tell(self) -> int:
        """Position in the decompressed stream."""
        return self._filled - (self._end - self._start)

    def _fill(self) -> bool:
        """Read on, when the buffer is used up; False at the end.

        Raises:
            EOFError: The compressed stream is cut.
            DataError: It expands by more than is allowed.
        """
        if self._stopping.is_set():
            raise InterruptedError
        count = self._source.readinto(self._buffer) or 0
        self._start, self._end = 0, count
        self._filled += count
        if self._filled > self._limit:
            raise DataError(
                f"{self.path}: expands to more than {self._max_ratio:g} times its size; "
                "if that is right, pass a larger --max-ratio"
            )
        position = self._file.tell()
        self._on_bytes(position - self._reported)
        self._reported = position
        return count > 0

    def read(self, size: int) -> bytes:
        """The next bytes, fewer only at the end; for headers.

        Raises:
            ValueError: More than any honest header needs.
        """
        if self._end - self._start >= size >= 0:
            self._start += size
            return bytes(self._buffer[self._start - size : self._start])
        if not 0 <= size <= _MAX_HEADER_BYTES:
            raise ValueError(f"a header of {size} bytes")
        parts = bytearray()
        while len(parts) < size and (self._start < self._end or self._fill()):
            count = min(size - len(parts), self._end - self._start)
            parts += self._buffer[self._start : self._start + count]
            self._start += count
        return bytes(parts)

    def copy(self, descriptor: int, size: int) -> None:
        """Write the next bytes to a file.

        Raises:
            EOFError: The archive ends before.
        """
        while size:
            if self._start == self._end and not self._fill():
                raise EOFError
            end = min(self._start + size, self._end)
            written = os.write(descriptor, self._buffer[self._start : end])
            self._start += written
            size -= written

    def skip_to(self, position: int) -> None:
        """Go forward to a position.

        Raises:
            EOFError: The archive ends before.
        """
        size = position - self.tell()
        while size > 0:
            if self._start == self._end and not self._fill():
                raise EOFError
            count = min(size, self._end - self._start)
            self._start += count
            size -= count

    def finish(self) -> None:
        """Read to the end, where the checksum of the compressed stream is."""
        while self._fill():
            pass
