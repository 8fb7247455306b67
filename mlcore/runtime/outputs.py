"""Outputs that appear whole or not at all.

A file or directory is written beside its final name and renamed, so a step that is killed at any moment leaves nothing
that a later step could take for a result. Where the output directory is itself a mount point (`docker run -v
out:/out`), a rename onto it is impossible: then it is filled from a staging directory inside it, `_SUCCESS.json` last.
"""

import contextlib
import datetime
import errno
import fcntl
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mlcore import __version__
from mlcore.runtime.errors import DataError, TransientError, UsageError

log = logging.getLogger(__name__)

SUCCESS = "_SUCCESS.json"
_PARTIAL = ".partial-"


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_disk_full(error: BaseException) -> bool:
    """Whether there was no room for what was written, by Python or by a library that has errors of its own."""
    numbers = (errno.ENOSPC, errno.EDQUOT)
    return getattr(error, "errno", None) in numbers or any(os.strerror(number) in str(error) for number in numbers)


def fsync_directory(path: Path) -> None:
    """Make the names in a directory durable, where the file system can."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that becomes `path` when the block ends well, and vanishes when it does not.

    Raises:
        IsADirectoryError: `path` is a directory.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}{_PARTIAL}", dir=path.parent)
    except OSError as error:  # of the temporary name, which says nothing to anybody
        raise type(error)(error.errno, error.strerror, str(path)) from error
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_directory(path.parent)


def _umask() -> int:
    # Linux tells the mask without changing it for the other threads.
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("Umask:"):
            return int(line.split()[1], 8)
    return 0o022


def read_success(directory: Path) -> dict[str, Any] | None:
    """What `_SUCCESS.json` in a directory says, or None where there is none.

    Raises:
        DataError: It is damaged, as by a power failure.
    """
    try:
        record = json.loads((directory / SUCCESS).read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise DataError(f"{directory / SUCCESS}: cannot be read ({error}); expected JSON written by mlcore") from error
    if not isinstance(record, dict):
        raise DataError(f"{directory / SUCCESS}: expected a JSON object")
    return record


def refuse_foreign(directory: Path, step: str, flag: str) -> None:
    """Make sure that a directory does not hold the result of another step, which a step that fills it would spoil.

    Raises:
        UsageError: It does.
        DataError: Its record is damaged.
    """
    try:
        record = read_success(directory)
    except DataError as error:
        raise DataError(f"{error}; remove this file if the folder is the step's own") from error
    if record is not None and record.get("step") != step:
        raise UsageError(f"{flag}={directory}: holds the result of the step {record.get('step')}; name another folder")


def _plain(value: Any) -> Any:
    """The value as it is after a round trip through JSON, so that new and recorded ones compare equal."""
    return json.loads(json.dumps(value, default=str, sort_keys=True))


class OutputDirectory:
    """The directory that a step makes, with a record of what it was made from.

    Args:
        path: Final name.
        step: Name of the step.
        parameters: Parameters that change the result (not paths, not numbers of processes).
        inputs: Name of each input -> its digest.
        reads: Files and folders that the step reads; a result must not take their place.
        overwrite: Replace a result that was made from something else.
        flag: The flag that names `path`.
        may_shrink: Users may delete or change files of the result on purpose, so it is only said when some are gone.

    Raises:
        UsageError: `path` is a file, or one of `reads`, or holds one.
    """

    def __init__(
        self,
        path: Path,
        *,
        step: str,
        parameters: Mapping[str, Any],
        inputs: Mapping[str, Any],
        reads: Iterable[Path] = (),
        overwrite: bool = False,
        may_shrink: bool = False,
        flag: str = "--output-dir",
    ) -> None:
        # A link stays, and leads to the result: it may be there to put it on another disk.
        self.path = Path(os.path.realpath(path)) if Path(path).is_symlink() else Path(path)
        self.named = f"{flag}={path}"
        self.step = step
        self.overwrite = overwrite
        self.may_shrink = may_shrink
        self.parameters: dict[str, Any] = _plain(dict(parameters))
        self.inputs: dict[str, Any] = _plain(dict(inputs))
        self.results: dict[str, Any] = {}
        if self.path.exists() and not self.path.is_dir():
            raise UsageError(f"{self.named}: is a file, expected a directory")
        place = Path(os.path.realpath(path))
        for read in reads:
            real = Path(os.path.realpath(read))
            if place == real or place in real.parents:
                what = "is what the step reads" if place == real else f"holds {read}, which the step reads"
                raise UsageError(f"{self.named}: {what}; name another directory, for its content is replaced")

    def existing(self) -> dict[str, Any] | None:
        """The record of an earlier run with the same step, parameters and inputs, or None where work is to be done.

        Raises:
            DataError: The directory holds something else, or less than was written, and `overwrite` is off.
        """
        if not self.path.is_dir():
            return None
        try:
            record = read_success(self.path)
        except DataError as error:
            if not self.overwrite:
                raise DataError(f"{error}; pass --overwrite=true to make the result anew") from error
            log.warning("%s; making the result anew", error)
            return None
        if record is None:
            foreign = sorted(entry.name for entry in self.path.iterdir() if not entry.name.startswith("."))
            foreign = [name for name in foreign if name != "lost+found"]
            if foreign and not self.overwrite:
                raise DataError(
                    f"{self.path}: not empty (it holds {foreign[0]}) and not made by this step; "
                    "name another --output-dir (--overwrite=true deletes all that is in it)"
                )
            return None
        difference = self._difference(record)
        if difference is None:
            lost = self._lost(self.path, record)
            if lost is None:
                log.info("%s is up to date", self.path)
                return record
            if self.overwrite:
                log.warning("%s: %s; making it anew", self.path, lost)
                return None
            if not self.may_shrink:
                raise DataError(f"{self.path}: {lost}; pass --overwrite=true to make it anew")
            log.warning("%s: %s; taken as it is, --overwrite=true makes it anew", self.path, lost)
            return record
        if not self.overwrite:
            raise DataError(
                f"{self.path}: was made with {difference}; name another --output-dir or pass --overwrite=true"
            )
        return None

    def _difference(self, record: Mapping[str, Any]) -> str | None:
        """The first thing in which a record differs from what is asked for."""
        if record.get("step") != self.step:
            return f"the step {record.get('step')}, now {self.step}"
        for kind, now in (("parameters", self.parameters), ("inputs", self.inputs)):
            before = record.get(kind, {})
            for name in sorted({*now, *before}):
                if now.get(name) != before.get(name):
                    label = f"--{name.replace('_', '-')}" if kind == "parameters" else f"another input {name}:"
                    return f"{label} {_short(before.get(name))}, now {_short(now.get(name))}"
        return None

    def _lost(self, directory: Path, record: Mapping[str, Any]) -> str | None:
        """What is gone of what was written."""
        content = record.get("content")
        if not isinstance(content, dict):
            return None  # written file by file, by a step that looks itself
        there = _content(directory)
        lost = {kind: content.get(kind, 0) - there[kind] for kind in ("files", "bytes")}
        if lost["files"] > 0:
            return f"{lost['files']:,} of the {content['files']:,} files that were written are gone"
        if lost["bytes"] > 0 and not self.may_shrink:
            return f"{lost['bytes']:,} of the {content['bytes']:,} bytes that were written are gone"
        return None

    def success_record(self) -> dict[str, Any]:
        """What `_SUCCESS.json` will say."""
        return {
            "step": self.step,
            "version": __version__,
            "time": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "parameters": self.parameters,
            "inputs": self.inputs,
            "results": _plain(self.results),
        }

    @contextlib.contextmanager
    def writing(self, *, durable: bool = True) -> Iterator[Path]:
        """A staging directory; when the block ends well it becomes the output, with `_SUCCESS.json` in it.

        Args:
            durable: Flush every file to the disk first, so that the result is whole even after a power failure. Off,
                it is whole after a kill; right for many small files that are cheap to make again.

        Raises:
            UsageError: The folder cannot be written.
            TransientError: The disk is full.
        """
        inside = self._must_fill_in_place()
        parent = self.path if inside else self.path.parent
        prefix = _PARTIAL if inside else f".{self.path.name}{_PARTIAL}"
        try:
            parent.mkdir(parents=True, exist_ok=True)
            _remove_abandoned(parent, prefix)
            staging, lock = _locked_directory(parent, prefix)
        except OSError as error:
            raise UsageError(f"{self.named}: cannot be written ({error.strerror})") from error
        try:
            yield staging
            record = self.success_record() | {"content": _content(staging)}
            (staging / SUCCESS).write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
            if durable:
                _fsync_tree(staging)
            if inside:
                self._move_in(staging)
            else:
                self._rename(staging)
        except Exception as error:
            if isinstance(error, TransientError) or not is_disk_full(error):
                raise
            raise TransientError(
                f"{parent}: no room on the disk ({os.strerror(errno.ENOSPC)}); nothing is left behind; free some "
                "and run the step again"
            ) from error
        finally:
            os.close(lock)
            shutil.rmtree(staging, ignore_errors=True)

    def _must_fill_in_place(self) -> bool:
        if not self.path.is_dir():
            return False
        return self.path.is_mount() or not os.access(self.path.parent, os.W_OK)

    def _rename(self, staging: Path) -> None:
        """One rename; a directory that was there steps aside first and is removed after."""
        if not self.path.exists():
            staging.rename(self.path)
        else:
            with contextlib.suppress(OSError):
                self.path.rmdir()  # an empty one that the user made
            if self.path.exists():
                aside = Path(tempfile.mkdtemp(prefix=f".{self.path.name}{_PARTIAL}", dir=self.path.parent))
                self.path.rename(aside / "old")
                staging.rename(self.path)
                shutil.rmtree(aside, ignore_errors=True)
            else:
                staging.rename(self.path)
        fsync_directory(self.path.parent)

    def _move_in(self, staging: Path) -> None:
        """Fill a directory that cannot be renamed: the old record goes first, the new one comes last."""
        (self.path / SUCCESS).unlink(missing_ok=True)
        for entry in self.path.iterdir():
            if entry.name.startswith(".") or entry.name == "lost+found":
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
        for entry in sorted(staging.iterdir(), key=lambda entry: entry.name == SUCCESS):
            entry.rename(self.path / entry.name)
        fsync_directory(self.path)


def _locked_directory(parent: Path, prefix: str) -> tuple[Path, int]:
    """A new directory and a descriptor that holds its lock, which tells other runs that it is in use."""
    while True:
        directory = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        try:
            directory.chmod(0o777 & ~_umask())
            descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:  # another run took it for abandoned before it was locked
            continue
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if directory.exists():  # else the same, a moment later
            return directory, descriptor
        os.close(descriptor)


def _content(directory: Path) -> dict[str, int]:
    """Number of files below a directory and their bytes; hidden ones at its top and the record are left out."""
    files = size = 0
    for folder, folders, names in os.walk(directory):
        if folder == os.fspath(directory):
            folders[:] = [name for name in folders if not name.startswith(".")]
            names = [name for name in names if not name.startswith(".") and name != SUCCESS]  # noqa: PLW2901
        files += len(names)
        size += sum(os.lstat(f"{folder}/{name}").st_size for name in names)
    return {"files": files, "bytes": size}


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _fsync_tree(root: Path) -> None:
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder, name)
            if path.is_file() and not path.is_symlink():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        fsync_directory(Path(folder))


def _remove_abandoned(parent: Path, prefix: str) -> None:
    """Remove staging directories of runs that were killed: nobody holds their lock any more."""
    for entry in parent.iterdir():
        if not (entry.name.startswith(prefix) and entry.is_dir()):
            continue
        try:
            descriptor = os.open(entry, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            continue  # its run is alive
        else:
            log.info("removing %s, left by a run that was killed", entry)
            shutil.rmtree(entry, ignore_errors=True)
        finally:
            os.close(descriptor)
