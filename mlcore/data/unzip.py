"""Unpacking a zip: the standard library reads the directory, isal decodes what is deflated."""

import calendar
import os
import stat
import struct
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from mlcore.data.archive_target import Target, member_path

_READ_BYTES = 128 << 10
_WRITE_BYTES = 256 << 10
_LOCAL_HEADER = struct.Struct("<4s22xHH")
_MAX_LINK_BYTES = 4096
_ENCRYPTED = 1


def unzip(
    path: Path,
    target: Target,
    archive: int,
    at: list[str],
    *,
    max_ratio: float,
    stopping: threading.Event,
    on_bytes: Callable[[int], object],
) -> None:
    """Unpack all members.

    Args:
        path: The archive.
        target: Where to.
        archive: Its number among the archives of the target.
        at: Holds the name of the member in work, for messages.
        max_ratio: Bytes of all members together for each byte of the archive.
        stopping: Ends the work when set.
        on_bytes: Called with the compressed size of each member that is done.

    Raises:
        ValueError: A member that is not allowed, is damaged, or has another size or checksum than its directory says.
        zipfile.BadZipFile: The directory or a header is damaged.
    """
    with zipfile.ZipFile(path) as zip_file, path.open("rb") as file:
        members = zip_file.infolist()
        total, size = sum(member.file_size for member in members), path.stat().st_size
        if total > max(max_ratio * size, 64 << 20):
            raise ValueError(f"expands to more than {max_ratio:g} times its size; see --max-ratio")
        for member in members:
            if stopping.is_set():
                raise InterruptedError
            at[0] = member.filename
            _unpack(zip_file, file, member, target, archive)
            on_bytes(member.compress_size)


def _unpack(zip_file: zipfile.ZipFile, file: IO[bytes], member: zipfile.ZipInfo, target: Target, archive: int) -> None:
    # Archives made on Windows may hold backslashes, against the format.
    name = member.filename.replace("\\", "/")
    path = member_path(name)
    is_directory = name.endswith("/")
    mode = member.external_attr >> 16
    kind = stat.S_IFMT(mode)
    target.bounds.count(member.file_size, directory=is_directory)
    if member.flag_bits & _ENCRYPTED:
        raise ValueError("it is encrypted")
    if is_directory:
        target.directory(archive, path)
    elif kind == stat.S_IFLNK:
        if member.file_size > _MAX_LINK_BYTES:
            raise ValueError("its link is too long")
        target.symlink(archive, path, zip_file.read(member).decode())
    elif kind in (0, stat.S_IFREG):
        with target.file(archive, path, mode or 0o644, _mtime(member)) as descriptor:
            _write(zip_file, file, member, descriptor)
    else:
        raise ValueError("it is a device or a pipe")


def _mtime(member: zipfile.ZipInfo) -> int:
    """Seconds since 1970; a zip knows no time zone. -1 where there is no such day, as in archives without times."""
    try:
        return calendar.timegm((*member.date_time, 0, 0, 0))
    except ValueError:
        return -1


def _write(zip_file: zipfile.ZipFile, file: IO[bytes], member: zipfile.ZipInfo, descriptor: int) -> None:
    """Write a member's bytes, no more than its directory entry says, and check size and CRC."""
    from isal import isal_zlib

    size, checksum = 0, 0
    for block in _deflated(file, member) if member.compress_type == zipfile.ZIP_DEFLATED else _other(zip_file, member):
        size += len(block)
        if size > member.file_size:
            break
        checksum = isal_zlib.crc32(block, checksum)
        view = memoryview(block)
        while view:
            view = view[os.write(descriptor, view) :]
    if size != member.file_size:
        raise ValueError(f"it has {'more' if size > member.file_size else 'fewer'} than its {member.file_size:,} bytes")
    if checksum != member.CRC:
        raise ValueError("its checksum (CRC-32) is wrong")


def _deflated(file: IO[bytes], member: zipfile.ZipInfo) -> Iterator[bytes]:
    from isal import igzip_lib

    file.seek(member.header_offset)
    header = file.read(_LOCAL_HEADER.size)
    if len(header) < _LOCAL_HEADER.size or not header.startswith(b"PK\x03\x04"):
        raise ValueError("its header is damaged")
    _, name_length, extra_length = _LOCAL_HEADER.unpack(header)
    file.seek(name_length + extra_length, os.SEEK_CUR)
    left = member.compress_size
    decoder = igzip_lib.IgzipDecompressor(igzip_lib.DECOMP_DEFLATE)
    while not decoder.eof:
        block = b""
        if decoder.needs_input:
            block = file.read(min(left, _READ_BYTES))
            left -= len(block)
            if not block:
                raise EOFError
        yield decoder.decompress(block, _WRITE_BYTES)


def _other(zip_file: zipfile.ZipFile, member: zipfile.ZipInfo) -> Iterator[bytes]:
    with zip_file.open(member) as stream:
        while block := stream.read(_WRITE_BYTES):
            yield block
