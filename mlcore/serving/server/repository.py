"""The versions of a model that are served: watches their directory and switches without a gap.

A new version is loaded and warmed up in a thread while the old ones answer; only then it takes requests. A version that
is no longer wanted finishes what it has and is freed. One that cannot be loaded is refused, logged once, and tried
again when its files change; the versions that are served stay. All state belongs to the event loop's thread.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mlcore.serving.server.errors import Code, RequestError
from mlcore.serving.server.metrics import Metrics
from mlcore.serving.server.policy import TrafficSplit, VersionPolicy
from mlcore.serving.server.signature import Arrays, Signature
from mlcore.serving.version_directory import SAVED_MODEL, list_versions

log = logging.getLogger(__name__)

Stamp = tuple[Any, ...]


class Model(Protocol):
    """A loaded version, as `savedmodel.SavedModel`."""

    signatures: dict[str, Signature]
    signature_defs: dict[str, Any]

    @property
    def default_signature(self) -> str: ...
    def run(self, signature: str, inputs: Arrays) -> dict[str, Any]: ...
    def warm_up(self) -> None: ...
    def close(self) -> None: ...


@dataclass(eq=False, slots=True)
class Version:
    """A version that is served, or was until its last request is answered.

    Attributes:
        number: Its number.
        model: What answers.
        stamp: Says whether its files are still the same.
        users: Requests in work.
        retired: Whether it takes no new ones.
    """

    number: int
    model: Model
    stamp: Stamp
    users: int = 0
    retired: bool = False


@dataclass(frozen=True)
class Failure:
    """A version that could not be loaded."""

    stamp: Stamp
    message: str


class Repository:
    """The served versions of one model.

    Args:
        name: Name of the model.
        base: Directory of the versions.
        load: Loads the version in a directory.
        policy: Which versions are served.
        traffic: Shares of requests that ask for no version; None: the highest version takes all.
        metrics: Told what is loaded.
    """

    def __init__(
        self,
        name: str,
        base: Path,
        *,
        load: Callable[[Path], Model],
        policy: VersionPolicy,
        traffic: TrafficSplit | None,
        metrics: Metrics,
    ) -> None:
        self.name = name
        self.base = base
        self.failures: dict[int, Failure] = {}
        self.loading: int | None = None
        self.threads = 0  # that load something
        self._load = load
        self._policy = policy
        self._traffic = traffic
        self._metrics = metrics
        self._versions: dict[int, Version] = {}  # the highest first
        self._complaint = ""

    @property
    def versions(self) -> dict[int, Version]:
        """Number -> version, the highest first."""
        return self._versions

    @property
    def ready(self) -> bool:
        """Whether there is a version that answers."""
        return bool(self._versions)

    def acquire(self, model: str, number: int | None, request_id: str) -> Version:
        """The version for a request, held until `release`.

        Raises:
            RequestError: Model or version are not served, or there is none yet.
        """
        if model != self.name:
            raise RequestError(f"model {model!r} is not served here; expected {self.name!r}", Code.NOT_FOUND)
        if number is None:
            if not self._versions:
                raise RequestError(f"model {model!r} has no version yet; try again later", Code.UNAVAILABLE)
            chosen = self._traffic.choose(request_id, self._versions) if self._traffic else None
            version = self._versions[chosen] if chosen is not None else next(iter(self._versions.values()))
        else:
            found = self._versions.get(number)
            if found is None:
                there = ", ".join(map(str, self._versions)) or "none"
                raise RequestError(f"model {model!r} has no version {number}; served: {there}", Code.NOT_FOUND)
            version = found
        version.users += 1
        return version

    def release(self, version: Version) -> None:
        """A request is done with a version."""
        version.users -= 1
        if version.retired and not version.users:
            self._free(version)

    async def watch(self, interval_s: float) -> None:
        """Look at the directory again and again, until cancelled."""
        while True:
            await self.refresh()
            await asyncio.sleep(interval_s)

    async def refresh(self) -> None:
        """Make the served versions those that the directory and the policy ask for."""
        try:
            stamps = await asyncio.to_thread(_scan, self.base)
        except OSError as error:
            self._complain(f"cannot be read ({error.strerror or error})")
            return
        if not stamps:
            self._complain("holds no version")
            return
        self.failures = {
            number: failure for number, failure in self.failures.items() if stamps.get(number) == failure.stamp
        }
        while True:
            wanted = self._wanted(stamps)
            missing = [number for number in wanted if not self._is_served(number, stamps[number])]
            if not missing:
                break
            await self._bring_in(missing[0], stamps[missing[0]])
        self._retire_others(wanted)
        asked_for = self._policy.specific | (self._traffic.versions if self._traffic else frozenset())
        absent = ", ".join(map(str, sorted(asked_for - stamps.keys())))
        self._complain(f"has no version {absent}, which is asked for" if absent else "")

    def _wanted(self, stamps: dict[int, Stamp]) -> list[int]:
        """The versions to serve, the highest first: a broken one is passed over, and the next takes its place."""
        good = stamps.keys() - self.failures.keys()
        wanted = set(self._policy.choose(good))
        if self._traffic:
            wanted |= self._traffic.versions & good
        return sorted(wanted, reverse=True)

    def _is_served(self, number: int, stamp: Stamp) -> bool:
        version = self._versions.get(number)
        return version is not None and version.stamp == stamp

    async def _bring_in(self, number: int, stamp: Stamp) -> None:
        """Load a version and let it take requests, or note that it is broken."""
        directory = list_versions(self.base).get(number, self.base / str(number))  # its name may be 005
        started = time.monotonic()
        self.loading = number
        try:
            model = await asyncio.to_thread(self._load_in_thread, directory)
        except Exception as error:
            self.failures[number] = Failure(stamp, str(error))
            self._metrics.load_failures.labels(self.name).inc()
            served = ", ".join(map(str, self._versions)) or "none"
            log.error("version %d of %s is refused: %s; served: %s", number, self.name, error, served)
            return
        finally:
            self.loading = None
        seconds = time.monotonic() - started
        self._metrics.load_seconds.labels(self.name, str(number)).set(seconds)
        before = self._versions.get(number)
        versions = {**self._versions, number: Version(number, model, stamp)}
        self._versions = {key: versions[key] for key in sorted(versions, reverse=True)}
        self._metrics.version.labels(self.name, str(number)).set(1)
        log.info("version %d of %s is served; it took %.1f s to load", number, self.name, seconds)
        if before is not None:
            self._retire(before)

    def _load_in_thread(self, directory: Path) -> Model:
        self.threads += 1
        try:
            return self._load(directory)
        finally:
            self.threads -= 1

    def _retire_others(self, wanted: list[int]) -> None:
        good = [number for number in self._versions if number in wanted]
        if not good:  # nothing wanted could be loaded: what is served stays
            return
        for number in [number for number in self._versions if number not in wanted]:
            version = self._versions[number]
            self._versions = {key: value for key, value in self._versions.items() if key != number}
            self._metrics.version.remove(self.name, str(number))
            log.info("version %d of %s is no longer served", number, self.name)
            self._retire(version)

    def _retire(self, version: Version) -> None:
        version.retired = True
        if not version.users:
            self._free(version)

    def _free(self, version: Version) -> None:
        log.debug("version %d of %s is freed", version.number, self.name)
        asyncio.get_running_loop().run_in_executor(None, version.model.close)

    def _complain(self, what: str) -> None:
        """Log a fault of the directory once, until it is another."""
        if what and what != self._complaint:
            served = ", ".join(map(str, self._versions)) or "none"
            log.warning("%s %s; served: %s", self.base, what, served)
        self._complaint = what


def _scan(base: Path) -> dict[int, Stamp]:
    """Version -> stamp of its files."""
    base.stat()
    stamps: dict[int, Stamp] = {}
    for number, directory in list_versions(base).items():
        try:
            folder, graph = directory.stat(), (directory / SAVED_MODEL).stat()
            variables = tuple(
                (file.name, file.stat().st_size, file.stat().st_mtime_ns)
                for file in sorted((directory / "variables").glob("*"))
            )
        except OSError:  # it is just being removed
            continue
        stamps[number] = (folder.st_dev, folder.st_ino, graph.st_ino, graph.st_size, graph.st_mtime_ns, variables)
    return stamps
