"""TFRecord files without TensorFlow.

A record is framed as uint64 length, masked CRC-32C of these eight bytes, data, masked CRC-32C of the data, all little
endian (tensorflow/core/lib/io/record_writer.h). The mask keeps a checksum over data that holds checksums from being
weak.
"""

import errno
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import google_crc32c

from mlcore.runtime.errors import DataError, TransientError

_HEADER = struct.Struct("<QI")
_LENGTH = struct.Struct("<Q")
_CRC = struct.Struct("<I")
_FLUSH_BYTES = 1 << 20
_READ_BYTES = 128 << 10  # a picture or two: who wants the first records of a file need not wait for more
_FLUSH_BUFFERS = 900  # the kernel takes 1,024 buffers in one call
MAX_RECORD_BYTES = 1 << 31  # what a protobuf message can hold


def masked_crc32c(*parts: bytes) -> int:
    """CRC-32C of these parts joined, rotated right by 15 bits plus a constant, as TFRecord stores it."""
    crc = 0
    for part in parts:
        crc = google_crc32c.extend(crc, part)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


class TFRecordWriter:
    """Writes records to one file; a context manager.

    Attributes:
        records: Records written.
        size: Bytes written, framing included.

    Raises:
        TransientError: The disk is full or fails.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.records = 0
        self.size = 0
        self._buffers: list[bytes] = []
        self._pending = 0
        self._file = self.path.open("wb", buffering=0)

    def write(self, *parts: bytes) -> int:
        """Add one record that is these parts joined; the masked CRC-32C of its data."""
        size = sum(map(len, parts))
        length = _LENGTH.pack(size)
        crc = masked_crc32c(*parts)
        # Gathered by the kernel instead of joined here: a record is mostly a whole picture.
        self._buffers += (length + _CRC.pack(masked_crc32c(length)), *parts, _CRC.pack(crc))
        self._pending += size + 16
        self.records += 1
        self.size += size + 16
        if self._pending >= _FLUSH_BYTES or len(self._buffers) >= _FLUSH_BUFFERS:
            self.flush()
        return crc

    def flush(self) -> None:
        """Hand everything to the operating system."""
        buffers: list[bytes | memoryview] = list(self._buffers)
        self._buffers.clear()
        self._pending = 0
        try:
            while buffers:
                written = os.writev(self._file.fileno(), buffers)
                while buffers and written >= len(buffers[0]):
                    written -= len(buffers.pop(0))
                if buffers and written:
                    buffers[0] = memoryview(buffers[0])[written:]
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            hint = f"; at least {sum(map(len, buffers)):,} bytes more are needed" if full else ""
            raise TransientError(f"{self.path}: cannot be written ({error.strerror}){hint}") from error

    def close(self) -> None:
        """Flush and close."""
        try:
            self.flush()
        finally:
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._file.close()


def read_records(path: Path | str) -> Iterator[bytes]:
    """The data of each record of a file, both checksums verified.

    Raises:
        DataError: The file ends within a record, or a checksum is wrong.
    """
    path = Path(path)
    with path.open("rb", buffering=_READ_BYTES) as file:
        number, offset = 0, 0
        while header := file.read(_HEADER.size):
            where = f"{path}: record {number} at byte {offset}"
            if len(header) < _HEADER.size:
                raise DataError(f"{where}: the file ends within its header; expected a whole TFRecord file")
            length, crc = _HEADER.unpack(header)
            if masked_crc32c(header[: _LENGTH.size]) != crc or length > MAX_RECORD_BYTES:
                raise DataError(f"{where}: the checksum of its length is wrong; expected a TFRecord file")
            data = file.read(length)
            footer = file.read(_CRC.size)
            if len(data) < length or len(footer) < _CRC.size:
                raise DataError(f"{where}: the file ends within its {length:,} bytes; expected a whole TFRecord file")
            if masked_crc32c(data) != _CRC.unpack(footer)[0]:
                raise DataError(f"{where}: the checksum of its {length:,} bytes is wrong; the file is damaged")
            yield data
            number += 1
            offset += length + _HEADER.size + _CRC.size
