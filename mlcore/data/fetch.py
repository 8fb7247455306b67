"""Several files at once into one directory, each checked, each only if it is not there yet.

    fetch_all(files, directory, *, parallel=4, retries=5, connect_timeout_s=20, stall_timeout_s=60, backoff_s=1,
              overwrite=False) -> list[Fetched]      # in the order of `files`

`files` are `mlcore.data.remote.RemoteFile`s, for example `mlcore.data.datasets.DATASETS["mnist"]`; `with_mirrors` puts
other base addresses before theirs. A `Fetched` has `path`, `size`, `sha256` (of the bytes that are there) and
`up_to_date`. Nothing is asked of a server for a file that is there with the right digest.
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mlcore.data.http_client import Client, SourceError
from mlcore.data.remote import RemoteFile, check_name, check_url, shown
from mlcore.data.space import DiskFull, Space
from mlcore.data.transfer import Fetched, Interrupted, Transfer
from mlcore.runtime.alone import alone_in
from mlcore.runtime.errors import DataError, MlcoreError, UsageError
from mlcore.runtime.outputs import atomic_file
from mlcore.runtime.progress import Progress, format_amount
from mlcore.runtime.signals import join

log = logging.getLogger(__name__)

LEDGER = ".download.json"
_STOP_S = 5  # a thread that is still connecting then ends with the process


def with_mirrors(files: Sequence[RemoteFile], bases: Sequence[str]) -> list[RemoteFile]:
    """The files with further addresses, tried first: each base address followed by the file's name.

    Raises:
        UsageError: A base is no address.
    """
    for base in bases:
        check_url(base, "--mirror")
    return [
        dataclasses.replace(file, urls=(*(f"{base.rstrip('/')}/{file.name}" for base in bases), *file.urls))
        for file in files
    ]


def fetch_all(
    files: Sequence[RemoteFile],
    directory: Path,
    *,
    parallel: int = 4,
    retries: int = 5,
    connect_timeout_s: float = 20,
    stall_timeout_s: float = 60,
    backoff_s: float = 1,
    overwrite: bool = False,
    before_replacing: Callable[[], object] = lambda: None,
) -> list[Fetched]:
    """Fetch files into a directory, several at once.

    One that fails does not stop the others (a full disk does); the failure is raised when they are done. What
    came of it is kept for the next run.

    Args:
        files: What to fetch, each under a name of its own.
        directory: Where to; made if it is not there, other files in it are left alone.
        parallel: Transfers at once.
        retries: Failures in a row, without a byte gained, after which an address is given up.
        connect_timeout_s: Longest wait for a connection, in seconds.
        stall_timeout_s: Longest time without a byte, in seconds.
        backoff_s: First wait after a failure, in seconds; doubles with each, up to a minute.
        overwrite: Replace files that are there and differ.
        before_replacing: Called before a file that is there is replaced by one that was fetched again.

    Returns:
        What is there now, in the order of `files`.

    Raises:
        UsageError: Two files with one name, a wrong address, or an address that knows no such file.
        DataError: Wrong digest or size, or another file in the way without `overwrite`.
        TransientError: No answer after all retries, or the disk is full.
    """
    _check(files)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--output-dir={directory}: cannot be written ({error.strerror})") from error
    client = Client(connect_timeout_s=connect_timeout_s, stall_timeout_s=stall_timeout_s)
    with alone_in(directory, wait_s=math.inf):
        run = _Run(
            directory,
            client,
            Ledger(directory),
            retries=retries,
            backoff_s=backoff_s,
            overwrite=overwrite,
            before_replacing=before_replacing,
        )
        return run.all(files, parallel)


def _check(files: Sequence[RemoteFile]) -> None:
    seen: dict[str, RemoteFile] = {}
    for file in files:
        if not file.urls:
            raise UsageError(f"{file.name}: no address")
        check_name(file.name, shown(file.urls[0]))
        for url in file.urls:
            check_url(url)
        other = seen.setdefault(file.name, file)
        if other is not file:
            raise UsageError(
                f"--url={shown(file.urls[0])} and --url={shown(other.urls[0])} would both be {file.name}; "
                "download them into different directories"
            )


class Ledger:
    """What is known of the files that were downloaded into a directory before: `.download.json`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        self.files: dict[str, dict[str, Any]] = {}
        with contextlib.suppress(OSError, ValueError, AttributeError, TypeError):
            self.files = dict(json.loads((directory / LEDGER).read_text())["files"])

    def add(self, fetched: Fetched) -> None:
        """Note a file that is there and checked."""
        entry = {
            "url": fetched.url, "size": fetched.size, "sha256": fetched.sha256,
            "etag": fetched.etag, "last_modified": fetched.last_modified,
        }  # fmt: skip
        with self._lock:
            if self.files.get(fetched.path.name) == entry:
                return
            self.files[fetched.path.name] = entry
            with atomic_file(self._directory / LEDGER) as temporary:
                temporary.write_text(json.dumps({"files": self.files}, indent=1, sort_keys=True))


class _Run:
    """The threads of one call, and what they share."""

    def __init__(
        self,
        directory: Path,
        client: Client,
        ledger: Ledger,
        *,
        retries: int,
        backoff_s: float,
        overwrite: bool,
        before_replacing: Callable[[], object],
    ) -> None:
        self.directory, self.client, self.ledger = directory, client, ledger
        self.retries, self.backoff_s, self.overwrite = retries, backoff_s, overwrite
        self.before_replacing = before_replacing
        self.lock = threading.Lock()
        self.space = Space(directory)
        self.stopping = threading.Event()
        self.results: dict[str, Fetched] = {}
        self.errors: dict[str, Exception] = {}
        self.totals: dict[str, int | None] = {}

    def all(self, files: Sequence[RemoteFile], parallel: int) -> list[Fetched]:
        self.totals = {file.name: file.size for file in files}
        waiting = iter(files)

        def next_files() -> Iterator[RemoteFile]:
            while not self.stopping.is_set():
                with self.lock:
                    file = next(waiting, None)
                if file is None:
                    return
                yield file

        with Progress("download", unit="B", quiet=len(files) < 2) as self.progress:
            self._know_total()
            threads = [
                threading.Thread(target=self._work, args=(next_files(),), name=f"download-{index}", daemon=True)
                for index in range(min(parallel, len(files)))
            ]
            try:
                for thread in threads:
                    thread.start()
                for thread in threads:
                    join(thread)
            except BaseException:
                self.stopping.set()
                self.client.abort()
                deadline = time.monotonic() + _STOP_S
                for thread in threads:
                    if thread.ident is not None:
                        thread.join(timeout=max(deadline - time.monotonic(), 0))
                raise
        if self.errors:
            raise _summary(self.errors, len(files))
        return [self.results[file.name] for file in files]

    def _work(self, files: Iterator[RemoteFile]) -> None:
        for file in files:
            try:
                self.results[file.name] = self._one(file)
            except Interrupted:
                return
            except DiskFull as error:
                self.errors[file.name] = error
                self.stopping.set()
                self.client.abort()
            except Exception as error:
                self.errors[file.name] = error

    def _one(self, file: RemoteFile) -> Fetched:
        there = self._existing(file)
        if there is None:
            transfer = Transfer(
                file, self.directory, self.client, self.space, self.retries, self.backoff_s, self.stopping,
                on_total=lambda total: self._know_total(file.name, total), on_bytes=self.progress.update,
                before_replacing=self.before_replacing,
            )  # fmt: skip
            there = transfer.run()
            log.info("%s: %s, sha256 %s", there.path, format_amount(there.size, "B"), there.sha256)
        else:
            log.info("%s is up to date", there.path)
            self._know_total(file.name, there.size)
            self.progress.update(there.size)
        self.ledger.add(there)
        return there

    def _know_total(self, name: str = "", total: int | None = None) -> None:
        """Show how much there is in all once every size is known."""
        if name:
            self.totals[name] = total
        known = [size for size in self.totals.values() if size is not None]
        if len(known) == len(self.totals):
            self.progress.total = sum(known)

    def _existing(self, file: RemoteFile) -> Fetched | None:
        """The file if it is there and right, None if it is to be fetched."""
        path = self.directory / file.name
        if not path.exists():
            return None
        if not path.is_file():
            raise DataError(f"{path}: is no file; a download of that name cannot be put there")
        entry = self.ledger.files.get(file.name, {})
        size, digests = path.stat().st_size, _digests(path, file)
        there = Fetched(
            path, size, digests["sha256"], entry.get("url", ""), True, entry.get("etag", ""),
            entry.get("last_modified", ""),
        )  # fmt: skip
        problem = self._difference(file, there, digests, entry)
        if problem is None:
            return there
        if not self.overwrite:
            raise DataError(f"{path}: {problem}; pass --overwrite=true to replace it, or name another --output-dir")
        return None

    def _difference(
        self, file: RemoteFile, there: Fetched, digests: dict[str, str], entry: dict[str, Any]
    ) -> str | None:
        """Why the file that is there is not the one that is asked for."""
        if file.digest is not None:
            found = digests[file.digest.algorithm]
            return None if found == file.digest.hex else (
                f"is there with the {file.digest.algorithm} {found}, expected {file.digest.hex}"
            )  # fmt: skip
        if not entry:
            return "is there and was not downloaded by this step"
        if entry.get("sha256") != there.sha256:
            return "was changed since it was downloaded"
        if entry.get("url") not in [shown(url) for url in file.urls]:
            return f"was downloaded from {entry.get('url')}"
        url = next(url for url in file.urls if shown(url) == entry["url"])
        return self._changed_at_source(url, there)

    def _changed_at_source(self, url: str, there: Fetched) -> str | None:
        """Ask the server, where no digest tells, whether it has the same file still."""
        headers = {}
        if there.etag:
            headers["If-None-Match"] = there.etag
        elif there.last_modified:
            headers["If-Modified-Since"] = there.last_modified
        try:
            reply = self.client.open(url, headers)
        except SourceError as error:
            log.warning("%s: cannot ask whether it has changed (%s); keeping it", there.path, error)
            return None
        reply.close()
        if reply.status == 304:
            return None
        if there.etag or there.last_modified:
            same = (reply.etag, reply.last_modified) == (there.etag, there.last_modified)
        else:
            same = reply.total in (there.size, None)
        return None if same else f"has changed at {shown(url)} since it was downloaded"


def _digests(path: Path, file: RemoteFile) -> dict[str, str]:
    algorithms = {"sha256"} | ({file.digest.algorithm} if file.digest else set())
    digests = {}
    for algorithm in algorithms:
        with path.open("rb") as stream:
            digests[algorithm] = hashlib.file_digest(stream, algorithm).hexdigest()
    return digests


def _summary(errors: dict[str, Exception], count: int) -> Exception:
    """The one error to raise: a bug first, then bad data, wrong use, a transient failure."""
    worst = max(errors.values(), key=lambda error: (not isinstance(error, MlcoreError), isinstance(error, DataError),
                                                    isinstance(error, UsageError)))  # fmt: skip
    others = [str(error) for error in errors.values() if error is not worst]
    if not others or not isinstance(worst, MlcoreError):
        return worst
    combined = type(worst)(f"{len(errors)} of {count} files failed: {worst}; {'; '.join(others)}")
    combined.__cause__ = worst
    return combined
