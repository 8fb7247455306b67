"""Unpacking a tar: the standard library reads the headers (all dialects), the bytes go from the buffer to the files."""

import os
import tarfile
from dataclasses import dataclass, field
from typing import Any, cast

from mlcore.data.archive_stream import ArchiveStream
from mlcore.data.archive_target import Target, member_path


@dataclass
class _Headers:
    """What `tarfile.TarInfo.fromtarfile` wants of a TarFile; a real one keeps every member in memory."""

    fileobj: ArchiveStream
    offset: int = 0
    encoding: str = "utf-8"
    errors: str = "surrogateescape"
    pax_headers: dict[str, str] = field(default_factory=dict)
    tarinfo: type[tarfile.TarInfo] = tarfile.TarInfo


def untar(stream: ArchiveStream, target: Target, archive: int, at: list[str]) -> None:
    """Unpack all members.

    Args:
        stream: The archive's bytes.
        target: Where to.
        archive: Its number among the archives of the target.
        at: Holds the name of the member in work, for messages.

    Raises:
        ValueError: A member that is not allowed, or a damaged header.
        EOFError: The archive is cut.
    """
    headers = _Headers(stream)
    while True:
        try:
            member = tarfile.TarInfo.fromtarfile(cast(Any, headers))
        except tarfile.HeaderError as error:
            _check_end(error, first=headers.offset == 0)
            break
        except (ValueError, KeyError, IndexError, OverflowError, RecursionError) as error:
            raise ValueError(f"a damaged header ({error})") from error
        at[0] = member.name
        _unpack(stream, target, archive, member)
        stream.skip_to(headers.offset)
    at[0] = ""
    stream.finish()


def _check_end(error: tarfile.HeaderError, *, first: bool) -> None:
    """Only a block of zeros ends a tar; anything else means that something is lost."""
    kind = type(error).__name__
    if kind == "EOFHeaderError":
        return
    if kind in ("EmptyHeaderError", "TruncatedHeaderError"):
        raise EOFError
    raise ValueError(f"{'holds no tar' if first else 'a damaged header'} ({error})")


def _unpack(stream: ArchiveStream, target: Target, archive: int, member: tarfile.TarInfo) -> None:
    path = member_path(member.name)
    target.bounds.count(member.size if member.isreg() else 0, directory=member.isdir())
    if member.isdir():
        target.directory(archive, path)
    elif member.issym():
        target.symlink(archive, path, member.linkname)
    elif member.islnk():
        target.hard_link(archive, path, member_path(member.linkname))
    elif member.isreg():
        with target.file(archive, path, member.mode, member.mtime) as descriptor:
            if member.issparse():
                _copy_sparse(stream, descriptor, member)
            else:
                stream.copy(descriptor, member.size)
    elif member.isdev():
        raise ValueError("it is a device or a pipe")
    else:
        raise ValueError(f"it is of the unknown kind {member.type!r}")


def _copy_sparse(stream: ArchiveStream, descriptor: int, member: tarfile.TarInfo) -> None:
    """Write the parts that hold data, each at its place; the rest stays a hole."""
    for offset, size in cast("list[tuple[int, int]]", member.sparse):
        if offset < 0 or size < 0 or offset + size > member.size:
            raise ValueError("a sparse file with parts outside it")
        os.lseek(descriptor, offset, os.SEEK_SET)
        stream.copy(descriptor, size)
    os.ftruncate(descriptor, member.size)
