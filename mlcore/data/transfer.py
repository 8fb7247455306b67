"""One file from its addresses to its name: mirrors, retries, resuming, checks.

The bytes gather in `.name.part`, with what is needed to go on after a kill in `.name.part.json`. The file gets its name
by a rename, after its length and digest were checked; a file with the wrong digest is set aside as `.name.bad`.
"""

import contextlib
import errno
import json
import logging
import os
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from mlcore.data.digester import Digester
from mlcore.data.http_client import Client, Reply, SourceError
from mlcore.data.remote import RemoteFile, shown
from mlcore.data.space import DISK_FULL, DiskFull, Space
from mlcore.runtime.errors import DataError, MlcoreError, TransientError, UsageError
from mlcore.runtime.progress import Progress, format_amount, format_duration

log = logging.getLogger(__name__)

MAX_BACKOFF_S = 60.0
MAX_RETRY_AFTER_S = 600.0
# ext4 caches what one write brings in one piece of memory, and on a virtual machine large pieces are often such as the
# host must first hand out: larger writes took up to ten times as long.
_WRITE_BYTES = 256 << 10


class Interrupted(Exception):
    """The transfer was told to stop; what it has is kept."""


@dataclass
class Mirror:
    """An address, and how it has behaved."""

    url: str
    failures: int = 0
    not_before: float = 0.0


@dataclass
class PartState:
    """What `.name.part.json` says about the bytes in `.name.part`.

    Attributes:
        url: Address that they came from, without its query.
        etag: Its ETag.
        last_modified: Its Last-Modified.
        total: Bytes of the whole file, None where the server did not say.
        mixed: Whether bytes came from several addresses, or of an address that gave no sign of a change.
    """

    url: str = ""
    etag: str = ""
    last_modified: str = ""
    total: int | None = None
    mixed: bool = False

    @property
    def validator(self) -> str:
        """What If-Range may carry; a weak ETag may not."""
        return self.etag if self.etag.startswith('"') else self.last_modified


@dataclass(frozen=True)
class Fetched:
    """A file that is there and checked.

    Attributes:
        path: Where it is.
        size: Bytes.
        sha256: SHA-256 of its bytes, in hexadecimal.
        url: Address that it came from, without its query.
        up_to_date: Whether it was there before.
        etag: ETag that the server gave, empty where there was none.
        last_modified: Last-Modified that the server gave, empty where there was none.
    """

    path: Path
    size: int
    sha256: str
    url: str = ""
    up_to_date: bool = False
    etag: str = ""
    last_modified: str = ""


@dataclass
class Transfer:
    """The work on one file.

    Attributes:
        file: What to fetch.
        directory: Where to.
        client: Opens the addresses.
        space: Room on the disk.
        retries: Failures in a row, without a byte gained, after which an address is given up.
        backoff_s: First wait after a failure, in seconds; doubles with each.
        stopping: Ends the transfer when set.
        on_total: Called with the size once it is known.
        on_bytes: Called with each number of bytes gained (negative: given up).
        before_replacing: Called before a file of the same name is replaced.
    """

    file: RemoteFile
    directory: Path
    client: Client
    space: Space
    retries: int
    backoff_s: float
    stopping: threading.Event
    on_total: Callable[[int], None]
    on_bytes: Callable[[int], None]
    before_replacing: Callable[[], object]
    _state: PartState = field(default_factory=PartState)
    _furthest: int = 0
    _counted: int = 0

    @property
    def path(self) -> Path:
        """The file's final name."""
        return self.directory / self.file.name

    @property
    def _part(self) -> Path:
        return self.directory / f".{self.file.name}.part"

    @property
    def _state_file(self) -> Path:
        return self.directory / f".{self.file.name}.part.json"

    def run(self) -> Fetched:
        """Fetch the file.

        Raises:
            DataError: The bytes are not those that were expected.
            TransientError: No address could give the file, after all retries, or the disk is full.
            UsageError: No address knows the file.
            Interrupted: `stopping` was set.
        """
        algorithms = {"sha256"} | ({self.file.digest.algorithm} if self.file.digest else set())
        try:
            descriptor = os.open(self._part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise UsageError(f"{self._part}: cannot be written ({error.strerror})") from error
        digester = Digester(sorted(algorithms))
        try:
            self._state = self._read_state()
            return self._run(descriptor, digester)
        except OSError as error:
            raise self._write_error(error, descriptor) from error
        finally:
            self.space.release(self.file.name)
            empty = os.fstat(descriptor).st_size == 0
            os.close(descriptor)
            if empty:
                self._forget_part()

    def _run(self, descriptor: int, digester: Digester) -> Fetched:
        self._count(os.fstat(descriptor).st_size)
        mirrors = [Mirror(url) for url in self.file.urls]
        given_up: list[tuple[Mirror, SourceError]] = []
        while mirrors:
            mirror = min(mirrors, key=lambda mirror: mirror.not_before)
            self._wait_for(mirror)
            self._furthest = max(self._furthest, os.fstat(descriptor).st_size)
            try:
                self._attempt(mirror, descriptor, digester)
                return self._finish(mirror, descriptor, digester)
            except SourceError as error:
                if self.stopping.is_set():
                    raise Interrupted from error
                if os.fstat(descriptor).st_size > self._furthest:
                    mirror.failures = 0
                mirror.failures += 1
                wait = self._wait_after(mirror, error)
                if wait is None:
                    mirrors.remove(mirror)
                    given_up.append((mirror, error))
                    if mirrors:
                        log.warning("%s: giving up %s: %s", self.file.name, shown(mirror.url), error)
                else:
                    mirror.not_before = time.monotonic() + wait
                    log.warning("%s: %s: %s; trying again", self.file.name, shown(mirror.url), error)
        raise self._hopeless(given_up)

    def _wait_for(self, mirror: Mirror) -> None:
        wait = mirror.not_before - time.monotonic()
        if wait >= 1:
            log.info("%s: waiting %s", self.file.name, format_duration(wait))
        if self.stopping.wait(max(wait, 0)):
            raise Interrupted

    def _wait_after(self, mirror: Mirror, error: SourceError) -> float | None:
        """Seconds to wait before the address is tried again, None to give it up."""
        if error.outcome is not TransientError or mirror.failures > self.retries:
            return None
        backoff = min(self.backoff_s * 2 ** (mirror.failures - 1), MAX_BACKOFF_S)
        backoff *= random.uniform(0.5, 1)  # so that many pods do not come back at the same moment
        asked = error.retry_after_s or 0.0
        return max(backoff, asked) if asked <= MAX_RETRY_AFTER_S else None

    def _hopeless(self, given_up: list[tuple[Mirror, SourceError]]) -> MlcoreError:
        ranks: tuple[type[MlcoreError], ...] = (UsageError, TransientError, DataError)
        outcome = max((error.outcome for _, error in given_up), key=ranks.index)
        reasons = "; ".join(f"{shown(mirror.url)}: {error}" for mirror, error in given_up)
        kept = self._part.stat().st_size if self._part.exists() else 0
        note = f"; {format_amount(kept, 'B')} are kept, run the step again to go on" if kept else ""
        return outcome(f"{self.path}: {reasons}{note}")

    def _attempt(self, mirror: Mirror, descriptor: int, digester: Digester) -> None:
        """One request, its body appended to the partial file."""
        offset = os.fstat(descriptor).st_size
        headers = self._range_headers(mirror, offset)
        reply = self.client.open(mirror.url, headers, may_downgrade=self.file.digest is not None)
        try:
            if reply.status == 416:
                if reply.total == offset:
                    return
                self._truncate(descriptor)
                raise SourceError("the server refused to go on; starting again", TransientError)
            if reply.status == 206:
                if reply.start != offset or (self._state.total is not None and reply.total != self._state.total):
                    self._truncate(descriptor)
                    raise SourceError("the server sent another part than asked for; starting again", TransientError)
                if self._has_changed(mirror, reply):  # a server that knows no If-Range
                    self._truncate(descriptor)
                    raise SourceError("the file has changed there; starting again", TransientError)
                log.info("%s: going on after %s", self.file.name, format_amount(offset, "B"))
            elif offset:
                log.info("%s: %s sends it from the start", self.file.name, shown(mirror.url))
                self._truncate(descriptor)
                offset = 0
            if reply.encoding not in ("", "identity"):  # against what was asked; a .gz may be called so by mistake
                log.warning("%s: the server calls it %s-encoded; kept as it comes", self.file.name, reply.encoding)
            self._check_total(reply)
            self._write_state(mirror, reply, offset)
            self._receive(reply, descriptor, offset, digester)
        finally:
            reply.close()

    def _range_headers(self, mirror: Mirror, offset: int) -> dict[str, str]:
        """Ask for the rest only if it is sure to be of the same file, or if the digest will tell."""
        same = self._state.url == shown(mirror.url)
        if offset and same and self._state.validator:
            return {"Range": f"bytes={offset}-", "If-Range": self._state.validator}
        if offset and self.file.digest:
            self._state.mixed = True
            return {"Range": f"bytes={offset}-"}
        return {}

    def _has_changed(self, mirror: Mirror, reply: Reply) -> bool:
        """Whether a part is of another file than the bytes that are there, of the same address."""
        if self._state.url != shown(mirror.url):
            return False
        signs = (self._state.etag, reply.etag), (self._state.last_modified, reply.last_modified)
        return any(before and now and before != now for before, now in signs)

    def _check_total(self, reply: Reply) -> None:
        if self.file.size is not None and reply.total is not None and reply.total != self.file.size:
            raise SourceError(f"it has {reply.total:,} bytes there, expected {self.file.size:,}", DataError)
        total = self._total(reply)
        if total is not None:
            self.on_total(total)

    def _total(self, reply: Reply) -> int | None:
        return reply.total if reply.total is not None else self.file.size

    def _receive(self, reply: Reply, descriptor: int, offset: int, digester: Digester) -> None:
        total = self._total(reply)
        os.lseek(descriptor, offset, os.SEEK_SET)
        digester.start_at(descriptor, offset)
        if total is not None:
            self.space.reserve(self.file.name, total - offset)
        with Progress(self.file.name, total, "B", initial=offset) as progress:
            while not self.stopping.is_set():
                count = reply.readinto(digester.buffer)
                digester.add(count)
                _write_all(descriptor, digester.buffer[:count])
                if count == 0:
                    break
                offset += count
                if total is not None and offset > total:
                    self._truncate(descriptor)
                    raise SourceError(f"it sends more than {total:,} bytes", DataError)
                self.space.used(self.file.name, count)
                self._count(offset)
                progress.update(count)
        if self.stopping.is_set():
            raise Interrupted
        if total is not None and offset < total:
            raise SourceError(f"the connection closed after {offset:,} of {total:,} bytes", TransientError)

    def _finish(self, mirror: Mirror, descriptor: int, digester: Digester) -> Fetched:
        """Check the digest and give the file its name."""
        size = os.fstat(descriptor).st_size
        digester.start_at(descriptor, size)
        digests = digester.hexdigests()
        expected = self.file.digest
        if expected is not None and digests[expected.algorithm] != expected.hex:
            if self._state.mixed:
                self._truncate(descriptor)
                raise SourceError("the parts do not fit together; starting again", TransientError)
            bad = self.directory / f".{self.file.name}.bad"
            self._set_aside(bad, descriptor)
            raise SourceError(
                f"its {expected.algorithm} is {digests[expected.algorithm]}, expected {expected.hex}; "
                f"what came is set aside as {bad}",
                DataError,
            )
        if self.path.exists():
            self.before_replacing()
        self._part.rename(self.path)
        self._state_file.unlink(missing_ok=True)
        etag, modified = self._state.etag, self._state.last_modified
        return Fetched(self.path, size, digests["sha256"], shown(mirror.url), etag=etag, last_modified=modified)

    def _set_aside(self, bad: Path, descriptor: int) -> None:
        """Rename the partial file; an empty one takes its place behind the same descriptor."""
        self._part.rename(bad)
        fresh = os.open(self._part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        os.dup2(fresh, descriptor, inheritable=False)
        os.close(fresh)
        self._truncate(descriptor)

    def _count(self, size: int) -> None:
        self.on_bytes(size - self._counted)
        self._counted = size

    def _truncate(self, descriptor: int) -> None:
        os.ftruncate(descriptor, 0)
        self._state = PartState()
        self._count(0)

    def _read_state(self) -> PartState:
        with contextlib.suppress(OSError, ValueError, TypeError):
            return PartState(**json.loads(self._state_file.read_text()))
        return PartState()

    def _write_state(self, mirror: Mirror, reply: Reply, offset: int) -> None:
        """Before the first byte, so that a kill at any moment leaves a part that is known."""
        mixed = self._state.mixed and offset > 0
        self._state = PartState(shown(mirror.url), reply.etag, reply.last_modified, reply.total, mixed)
        temporary = self._state_file.with_name(f"{self._state_file.name}.new")
        temporary.write_text(json.dumps(vars(self._state)))
        temporary.replace(self._state_file)

    def _forget_part(self) -> None:
        self._part.unlink(missing_ok=True)
        self._state_file.unlink(missing_ok=True)

    def _write_error(self, error: OSError, descriptor: int) -> MlcoreError:
        """A failed write as an error that says how much room is missing."""
        if error.errno not in DISK_FULL:
            return UsageError(f"{self._part}: cannot be written ({error.strerror})")
        have = os.fstat(descriptor).st_size
        total = self._state.total if self._state.total is not None else self.file.size
        rest = (
            f"{total - have:,} of its {total:,} bytes are missing"
            if total
            else f"its size is not known, {have:,} bytes came"
        )
        reason = "the limit of a file's size is reached" if error.errno == errno.EFBIG else "the disk is full"
        return DiskFull(f"{self.path}: {reason}: {rest}; what came is kept, make room and run the step again")


def _write_all(descriptor: int, data: memoryview) -> None:
    while data:
        data = data[os.write(descriptor, data[:_WRITE_BYTES]) :]
