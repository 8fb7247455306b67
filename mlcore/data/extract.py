"""The step `extract`: tar, tar.gz, tar.bz2, tar.xz and zip archives into one directory, safely."""

import functools
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from mlcore.runtime.errors import DataError, UsageError
from mlcore.runtime.outputs import OutputDirectory
from mlcore.runtime.parameters import Range, step
from mlcore.runtime.progress import Progress, format_amount
from mlcore.runtime.signals import join

if TYPE_CHECKING:
    from mlcore.data.archive_stream import Format
    from mlcore.data.archive_target import Target

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExtractResult:
    """What `extract` did.

    Attributes:
        output_dir: Directory with what was in the archives.
        files: Files and links of all archives.
        bytes: Size of all files.
    """

    output_dir: Path
    files: int
    bytes: int


@step
def extract(
    *,
    archive: tuple[Path, ...],
    output_dir: Path,
    max_files: Annotated[int, Range(min=1)] = 5_000_000,
    max_bytes: Annotated[int, Range(min=1)] = 1_000_000_000_000,
    max_ratio: Annotated[float, Range(min=1)] = 200,
    overwrite: bool = False,
) -> ExtractResult:
    """Unpack archives into one directory that appears whole; nothing is written outside it.

    Formats: tar, tar.gz, tar.bz2, tar.xz, zip, told by their first bytes. Several archives are unpacked at the same
    time; no two may hold the same file. Refused: absolute names, `..`, links that lead out, devices. Set-uid bits and
    the right of others to write are taken away, owners are not restored.

    Args:
        archive: Archive to unpack.
        output_dir: Directory that is made; each archive's members keep their own paths in it.
        max_files: Most members of all archives together, directories included.
        max_bytes: Most bytes of all files together.
        max_ratio: Most bytes after decompression for each byte of an archive; a guard against bombs (archives under 64
            MB after decompression are not measured).
        overwrite: Replace a directory that was made from other archives.

    Returns:
        How much was unpacked.

    Raises:
        UsageError: No archive is given, or one cannot be read.
        DataError: An archive is damaged, cut, passes a bound, or holds what is refused; archive and member are named.
        TransientError: The disk is full.
    """
    from mlcore.data.archive_stream import archive_format
    from mlcore.data.archive_target import Bounds, Target

    if not archive:
        raise UsageError("--archive must be given at least once")
    formats = [archive_format(path) for path in archive]
    output = OutputDirectory(
        output_dir, step="extract", parameters={}, inputs=_fingerprints(archive), reads=archive, overwrite=overwrite,
        may_shrink=True,
    )  # fmt: skip
    if (done := output.existing()) is not None:
        return ExtractResult(output_dir, **done["results"])
    bounds = Bounds(max_files, max_bytes)
    # Not flushed to the disk file by file: an archive is unpacked again sooner than thousands of files are flushed.
    with output.writing(durable=False) as directory:
        target = Target(directory, [str(path) for path in archive], bounds)
        total = sum(path.stat().st_size for path in archive)
        with Progress("extract", total, "B") as progress:
            work = _Work(target, max_ratio, progress.update)
            tasks = [
                functools.partial(work.unpack, path, kind, number)
                for number, (path, kind) in enumerate(zip(archive, formats, strict=True))
            ]
            _all_at_once(tasks, work.stopping)
        target.make_links()
        output.results = {"files": bounds.files, "bytes": bounds.bytes}
    log.info("%s: %s files, %s", output_dir, f"{bounds.files:,}", format_amount(bounds.bytes, "B"))
    return ExtractResult(output_dir, bounds.files, bounds.bytes)


def _fingerprints(archives: tuple[Path, ...]) -> dict[str, str]:
    """What tells whether archives are the same as before, without reading them."""
    prints: dict[str, str] = {}
    for number, path in enumerate(archives):
        status = path.stat()
        prints[f"{number}:{path.name}"] = f"{status.st_size} bytes, changed {status.st_mtime_ns}"
    return prints


class _Work:
    """What the threads of one run share."""

    def __init__(self, target: "Target", max_ratio: float, on_bytes: Callable[[int], object]) -> None:
        self.target, self.max_ratio, self.on_bytes = target, max_ratio, on_bytes
        self.stopping = threading.Event()

    def unpack(self, path: Path, kind: "Format", number: int) -> None:
        """Unpack one archive.

        Raises:
            DataError: It is damaged or holds what is refused.
        """
        import lzma
        import zipfile
        import zlib

        from isal import igzip_lib, isal_zlib

        from mlcore.data.space import DISK_FULL, DiskFull

        at = [""]
        isal_errors: tuple[Any, ...] = (igzip_lib.error, isal_zlib.error)  # classes; isal's stubs say instances
        damaged: tuple[type[Exception], ...] = (*isal_errors, zlib.error, lzma.LZMAError, zipfile.BadZipFile)
        try:
            if kind == "zip":
                self._unzip(path, number, at)
            else:
                self._untar(path, kind, number, at)
        except EOFError as error:
            raise DataError(f"{_place(path, at)}: the archive is cut here") from error
        except (ValueError, NotImplementedError) as error:
            raise DataError(f"{_place(path, at)}: {error}") from error
        except damaged as error:
            raise DataError(f"{_place(path, at)}: the archive is damaged here ({error})") from error
        except InterruptedError:
            return
        except OSError as error:
            if error.errno is None:  # the decoders raise it without a number for damaged data
                raise DataError(f"{_place(path, at)}: the archive is damaged here ({error})") from error
            if error.errno in DISK_FULL:
                raise DiskFull(
                    f"{_place(path, at)}: no room on the disk ({error.strerror}); nothing is left"
                ) from error
            raise DataError(f"{_place(path, at)}: cannot be unpacked ({error.strerror})") from error

    def _untar(self, path: Path, kind: "Format", number: int, at: list[str]) -> None:
        from mlcore.data.archive_stream import ArchiveStream
        from mlcore.data.untar import untar

        stream = ArchiveStream(
            path, kind, max_ratio=self.max_ratio, stopping=self.stopping, on_bytes=self.on_bytes
        )  # fmt: skip
        try:
            untar(stream, self.target, number, at)
        finally:
            stream.close()

    def _unzip(self, path: Path, number: int, at: list[str]) -> None:
        from mlcore.data.unzip import unzip

        unzip(
            path, self.target, number, at, max_ratio=self.max_ratio, stopping=self.stopping, on_bytes=self.on_bytes
        )  # fmt: skip


def _place(path: Path, at: list[str]) -> str:
    return f"{path}: {at[0].encode(errors='replace').decode()!r}" if at[0] else str(path)


def _all_at_once(tasks: Sequence[Callable[[], None]], stopping: threading.Event) -> None:
    """Run each task in a thread; the first that fails stops the others, and its error is raised."""
    errors: list[Exception] = []

    def run(task: Callable[[], None]) -> None:
        try:
            task()
        except Exception as error:
            errors.append(error)
            stopping.set()

    threads = [threading.Thread(target=run, args=(task,), daemon=True) for task in tasks]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            join(thread)
    except BaseException:
        stopping.set()
        for thread in threads:
            if thread.ident is not None:
                join(thread)
        raise
    if errors:
        raise errors[0]
