"""Where members of archives go: safe names, bounds, files, links. Nothing is ever written outside the directory.

Links are made when everything else is there, so that no member can be written through one.
"""

import contextlib
import os
import posixpath
import stat
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mlcore.data.space import DISK_FULL, DiskFull
from mlcore.runtime.errors import DataError
from mlcore.runtime.outputs import SUCCESS

_MAX_PATH_BYTES = 4000
_MAX_DEPTH = 100


def member_path(name: str) -> str:
    """A member's name as a relative path without `.` parts; empty for the root itself.

    Raises:
        ValueError: The name is absolute, climbs out with `..`, or no file system could have it.
    """
    if name.startswith("/"):
        raise ValueError("its name is absolute")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise ValueError("its name leads out of the output directory (..)")
    if "\0" in name or len(os.fsencode(name)) > _MAX_PATH_BYTES or len(parts) > _MAX_DEPTH:
        raise ValueError("its name is not usable")
    return "/".join(parts)


def link_target(path: str, target: str) -> str:
    """Where a symbolic link at `path` leads, as a path in the output directory.

    Raises:
        ValueError: It is absolute or leads out.
    """
    if not target or target.startswith("/") or "\0" in target:
        raise ValueError(f"it is a link to {target!r}, which is absolute or empty")
    resolved = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
    if resolved == ".." or resolved.startswith("../"):
        raise ValueError(f"it is a link to {target}, which leads out of the output directory")
    return resolved


def _check_not_reserved(path: str) -> None:
    if path == SUCCESS:
        raise ValueError(
            "this name is kept for the record of the step; archive the whole folder (tar -C parent -czf x.tar.gz "
            "folder), so that its files lie below its name"
        )


@dataclass
class Bounds:
    """How much all archives together may hold.

    Attributes:
        max_members: Files, links and directories.
        max_bytes: Bytes of all files.
    """

    max_members: int
    max_bytes: int
    members: int = 0
    files: int = 0
    bytes: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, size: int, *, directory: bool) -> None:
        """Count one member, before anything of it is written.

        Raises:
            ValueError: A bound is passed.
        """
        if size < 0:
            raise ValueError(f"its size is {size}")
        with self._lock:
            self.members += 1
            self.files += not directory
            self.bytes += size
        if self.members > self.max_members:
            raise ValueError(f"there are more than {self.max_members:,} members; see --max-files")
        if self.bytes > self.max_bytes:
            raise ValueError(f"there are more than {self.max_bytes:,} bytes; see --max-bytes")


@dataclass(frozen=True)
class _Owner:
    """What has a path: which archive, and what it put there (`file`, `link` or `directory`)."""

    archive: int
    kind: str


class Target:
    """A directory that several archives are unpacked into at the same time.

    Args:
        root: The directory.
        archives: Names of the archives, for messages.
        bounds: Limits of all of them together.
    """

    def __init__(self, root: Path, archives: list[str], bounds: Bounds) -> None:
        self.root = os.fspath(root)
        self.bounds = bounds
        self._archives = archives
        self._owners: dict[str, _Owner] = {}
        self._links: dict[str, str] = {}
        self._lock = threading.Lock()

    def _claim(self, path: str, owner: _Owner) -> bool:
        """Take a path for a member; whether it was the same archive's before (the last member of a name wins).

        Raises:
            ValueError: Another archive has it, or something of another kind is there.
        """
        if not path:
            raise ValueError("it has no name")
        _check_not_reserved(path)
        with self._lock:
            before = self._owners.get(path)
            self._owners[path] = owner
        if before is None:
            return False
        if before.archive != owner.archive:
            raise ValueError(f"{self._archives[before.archive]} has it too; unpack them into different directories")
        if "directory" in (before.kind, owner.kind):
            raise ValueError(f"it is there as a {before.kind} and as a {owner.kind}")
        return True

    def directory(self, archive: int, path: str) -> None:
        """Make a directory and those above it.

        Raises:
            ValueError: A file or link is in the way.
        """
        known = self._owners.get(path)
        if not path or (known is not None and known.kind == "directory"):
            return
        _check_not_reserved(path)
        self.directory(archive, posixpath.dirname(path))
        with self._lock:
            before = self._owners.setdefault(path, _Owner(archive, "directory"))
            if before.kind != "directory":
                raise ValueError(f"{path} is a {before.kind} and cannot hold it")
            with contextlib.suppress(FileExistsError):
                os.mkdir(f"{self.root}/{path}")  # noqa: PTH102 (a path object for each member costs more than the call)

    @contextlib.contextmanager
    def file(self, archive: int, path: str, mode: int, mtime: float) -> Iterator[int]:
        """A new file's descriptor, to be written; rights of others to write and set-uid bits are taken away.

        Raises:
            ValueError: Another archive has the file.
        """
        self.directory(archive, posixpath.dirname(path))
        if self._claim(path, _Owner(archive, "file")):
            self._remove(path)
        full = f"{self.root}/{path}"
        mode = (mode & 0o755) | stat.S_IRUSR | stat.S_IWUSR
        descriptor = os.open(full, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
        try:
            yield descriptor
            if 0 <= mtime < 1 << 33:
                os.utime(descriptor, (mtime, mtime))
        except OSError as error:
            if error.errno in DISK_FULL:
                raise DiskFull(
                    f"{self._archives[archive]}: {path}: no room on the disk ({error.strerror}) after "
                    f"{self.bounds.bytes:,} bytes; nothing is left behind"
                ) from error
            raise
        finally:
            os.close(descriptor)

    def _remove(self, path: str) -> None:
        if self._links.pop(path, None) is None:
            os.unlink(f"{self.root}/{path}")  # noqa: PTH108

    def symlink(self, archive: int, path: str, target: str) -> None:
        """Note a symbolic link.

        Raises:
            ValueError: It leads out.
        """
        link_target(path, target)
        self.directory(archive, posixpath.dirname(path))
        if self._claim(path, _Owner(archive, "link")):
            self._remove(path)
        self._links[path] = target

    def hard_link(self, archive: int, path: str, target: str) -> None:
        """Give a file that this archive holds a second name.

        Raises:
            ValueError: It holds no such file.
        """
        if self._owners.get(target) != _Owner(archive, "file"):
            raise ValueError(f"it is a hard link to {target}, which is no file before it in the archive")
        if path == target:
            return
        self.directory(archive, posixpath.dirname(path))
        if self._claim(path, _Owner(archive, "file")):
            self._remove(path)
        os.link(f"{self.root}/{target}", f"{self.root}/{path}", follow_symlinks=False)

    def make_links(self) -> None:
        """Make the symbolic links, each only if it stays inside with all others in place.

        Raises:
            DataError: One leads out.
        """
        root = os.path.realpath(self.root)
        for path, target in self._links.items():
            Path(self.root, path).symlink_to(target)
        for path, target in self._links.items():
            real = os.path.realpath(f"{self.root}/{path}")
            if real != root and not real.startswith(f"{root}/"):
                archive = self._archives[self._owners[path].archive]
                raise DataError(f"{archive}: {path}: it is a link to {target}, which leads out of the output directory")
