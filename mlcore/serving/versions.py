"""The step `versions`: the numbered versions of a model, which one is served, and which one shall be.

A number means one model for ever. A version that is set aside is renamed into `<base>/.retired/<number>`, which servers
pass over, since its name begins with a dot; the one that shall be served is the highest that is left. Each change is a
rename, so that a server that polls sees a version whole or not at all, and a step that is killed between two renames
leaves every version in one of the two places; the same command again goes on.
"""

import datetime
import errno
import logging
import os
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from mlcore.runtime.errors import DataError, TransientError, UsageError
from mlcore.runtime.outputs import fsync_directory, read_success
from mlcore.runtime.parameters import Positional, Range, step
from mlcore.runtime.progress import format_amount, format_duration
from mlcore.serving.clients.access import Access
from mlcore.serving.version_directory import (
    RETIRED,
    SAVED_MODEL,
    list_versions,
    read_card,
    retired_versions,
)

log = logging.getLogger(__name__)

READY_STATES = ("AVAILABLE", "READY")
_DEFAULT = "default"  # state of the version that answers where none is named
_DELETED = ".deleted-"  # begins the name of a version that is being removed


@dataclass(frozen=True)
class Version:
    """One version of a model.

    Attributes:
        number: Its number.
        path: Its directory.
        retired: Whether it is set aside.
        age_s: Seconds since it was made.
        size: Bytes of its files.
        metrics: What model.json says of its quality.
        signatures: Names of its signatures, as model.json has them.
        served_by: Servers that say they have it, with its state.
    """

    number: int
    path: Path
    retired: bool
    age_s: float
    size: int
    metrics: Mapping[str, Any]
    signatures: tuple[str, ...]
    served_by: tuple[str, ...] = ()


@dataclass(frozen=True)
class VersionsResult:
    """What there is after the action.

    Attributes:
        versions: Numbers of the versions that servers see.
        retired: Numbers of the versions that are set aside.
        serving: The version that a server takes by itself: the highest of `versions`.
        removed: Numbers of the versions that were removed.
    """

    versions: tuple[int, ...]
    retired: tuple[int, ...]
    serving: int | None
    removed: tuple[int, ...] = ()


@step
def versions(
    *,
    models_dir: Annotated[Path, Positional()],
    action: Annotated[Literal["list", "promote", "rollback", "prune"], Positional()] = "list",
    version: Annotated[int | None, Range(min=1)] = None,
    keep: Annotated[int, Range(min=1)] = 2,
    server: tuple[str, ...] = (),
    protocol: Literal["tfs-grpc", "v1", "v2", "v2-grpc"] = "tfs-grpc",
    model_name: str | None = None,
    host_header: str | None = None,
    token_file: Path | None = None,
    ca_file: Path | None = None,
    deadline_s: Annotated[float, Range(min=0.1)] = 5.0,
) -> VersionsResult:
    """List the versions of a model and choose the one that is served.

    list shows each version with its age, metrics, signatures and size, and with --server which one is served where.
    promote makes --version the highest that servers see: those above it are set aside, and it is brought back if it was
    set aside itself. rollback promotes the one below the highest. prune removes the oldest beyond --keep, never the
    highest. All by rename, while servers poll the directory; a number is never given to another model.

    Args:
        models_dir: Directory of the versions: the --output-dir of mlcore export, the --export-dir of mnist-train.
        action: What to do.
        version: The version that promote makes the highest.
        keep: Versions that prune leaves, the highest first; those that are set aside count as well.
        server: host:port of a server to ask which versions it has; prune removes none of them.
        protocol: How the servers speak.
        model_name: Name of the model on the servers. Default: the name of the directory.
        host_header: Host to ask the servers for, where an ingress routes by it: that of the service's URL.
        token_file: File with a bearer token for the servers, such as a service account's. Default: the environment
            variable MLCORE_SERVER_TOKEN, if it is set.
        ca_file: PEM certificates of the authorities to trust with https://. Default: the system's.
        deadline_s: Longest time that a server is asked, in seconds.

    Returns:
        The numbers.

    Raises:
        UsageError: There is no such directory or version, or nothing to roll back to.
        DataError: A number is there twice, or a version has an unreadable model.json.
        TransientError: The directory changed meanwhile, or a server that prune should ask does not answer.
    """
    if not models_dir.is_dir():
        raise UsageError(
            f"--models-dir={models_dir}: no such directory; expected the output directory of mlcore export"
        )
    if (models_dir / SAVED_MODEL).is_file():
        raise UsageError(f"--models-dir={models_dir}: is a version itself; expected the directory above it")
    if version is not None and action != "promote":
        raise UsageError(f"--version={version} is for promote, not for {action}")
    _check_twice(models_dir)
    name = model_name or models_dir.resolve().name
    # Before anything is removed: what a server still has stays.
    access = Access.read(host_header, token_file, ca_file)
    held = _served(server, protocol, name, access, deadline_s, must_answer=action == "prune")
    removed: tuple[int, ...] = ()
    try:
        if action == "promote":
            if version is None:
                raise UsageError("promote needs --version, the version that shall be the highest")
            promote(models_dir, version)
        elif action == "rollback":
            rollback(models_dir)
        elif action == "prune":
            removed = prune(models_dir, keep, {number for states in held.values() for number in states})
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise UsageError(f"--models-dir={models_dir}: cannot be written ({error.strerror})") from error
        raise TransientError(f"{models_dir}: {error.strerror or error} ({error.filename})") from error
    if action == "list" or server:
        print(_table(describe(models_dir, held)))
    seen = tuple(list_versions(models_dir))
    return VersionsResult(
        versions=seen,
        retired=tuple(retired_versions(models_dir)),
        serving=max(seen, default=None),
        removed=removed,
    )


def promote(base: Path, number: int) -> None:
    """Make a version the highest that servers see.

    The wanted one comes back first, so that at no moment a server sees less than it needs.

    Raises:
        UsageError: There is no such version.
    """
    seen, aside = list_versions(base), retired_versions(base)
    if number not in seen and number not in aside:
        known = ", ".join(map(str, sorted({*seen, *aside}))) or "none"
        raise UsageError(f"--version={number}: {base} has no such version; there is {known}")
    above = sorted((each for each in seen if each > number), reverse=True)
    wanted = seen[number] if number in seen else aside[number]
    for other in (*(seen[higher] for higher in above), *aside.values()):
        if other != wanted and not other.is_symlink() and wanted.resolve() == other.resolve():
            raise UsageError(f"--version={number}: {wanted} is a link to {other}, which is not for servers to see then")
    if number in aside:
        _move(aside[number], base / str(number))
        fsync_directory(base)
        log.info("%s is back", base / str(number))
    for higher in above:
        _retire(base, seen[higher])
    log.info("%s is the highest version", base / str(number))


def rollback(base: Path) -> int:
    """Promote the version below the highest; its number.

    Raises:
        UsageError: There is none.
    """
    seen = sorted(list_versions(base))
    if len(seen) < 2:
        raise UsageError(f"{base}: has {len(seen)} version{'s' if len(seen) != 1 else ''}; nothing to roll back to")
    promote(base, seen[-2])
    return seen[-2]


def prune(base: Path, keep: int, served: Collection[int] = ()) -> tuple[int, ...]:
    """Remove the oldest versions, so that `keep` are left; the highest that servers see is never removed.

    Args:
        base: Directory of the versions.
        keep: How many are left, at least.
        served: Further versions that stay.

    Returns:
        The numbers that were removed.
    """
    for entry in sorted(_retired_folder(base).glob(f"{_DELETED}*")) if _retired_folder(base).is_dir() else ():
        shutil.rmtree(entry, ignore_errors=True)  # left by a run that was killed
    seen, aside = list_versions(base), retired_versions(base)
    serving = max(seen, default=None)
    every = sorted({*seen, *aside}, reverse=True)
    kept = [number for number in every if number == serving][:keep]
    kept += [number for number in every if number != serving][: keep - len(kept)]
    removed = tuple(sorted(set(every) - set(kept) - set(served)))
    for number in removed:
        folder = _retired_folder(base)
        folder.mkdir(exist_ok=True)
        _remember(base, max(every))
        doomed = folder / f"{_DELETED}{os.getpid()}-{number}"
        (seen.get(number) or aside[number]).rename(doomed)
        shutil.rmtree(doomed)
        log.info("version %d is removed", number)
    return removed


def _retired_folder(base: Path) -> Path:
    return base / RETIRED


def _remember(base: Path, number: int) -> None:
    """Keep the highest number that there was, so that it is not given again once its version is removed."""
    (_retired_folder(base) / f".highest-{number}").touch()
    for entry in _retired_folder(base).glob(".highest-*"):
        text = entry.name.rpartition("-")[2]
        if text.isdecimal() and int(text) < number:
            entry.unlink(missing_ok=True)


def _move(entry: Path, to: Path) -> None:
    """Rename a version; a relative link leads to the same place from there."""
    if entry.is_symlink() and not entry.readlink().is_absolute():
        to.symlink_to(os.path.relpath(entry.parent.resolve() / entry.readlink(), to.parent.resolve()))
        entry.unlink()
    else:
        entry.rename(to)


def _retire(base: Path, directory: Path) -> None:
    folder = _retired_folder(base)
    folder.mkdir(exist_ok=True)
    _move(directory, folder / directory.name)
    fsync_directory(base)
    log.info("%s is set aside in %s", directory, folder)


def _check_twice(base: Path) -> None:
    """A number in both places is another's doing; none of the two is touched."""
    both = sorted(set(list_versions(base)) & set(retired_versions(base)))
    if both:
        raise DataError(
            f"version {both[0]} is both in {base} and in {_retired_folder(base)}; rename one of them to another number"
        )


def describe(base: Path, held: Mapping[str, Mapping[int, str]] | None = None) -> list[Version]:
    """All versions, the highest first.

    Args:
        base: Directory of the versions.
        held: Server -> version -> state.

    Raises:
        DataError: A model.json cannot be read.
    """
    found = []
    for retired, directories in ((False, list_versions(base)), (True, retired_versions(base))):
        for number, directory in directories.items():
            card = read_card(directory)
            made = (directory / SAVED_MODEL).stat().st_mtime
            record = read_success(directory) or {}
            if isinstance(record.get("time"), str):
                made = datetime.datetime.fromisoformat(record["time"]).timestamp()
            servers = [
                server if states[number] in READY_STATES else f"{server} ({states[number]})"
                for server, states in (held or {}).items()
                if number in states
            ]
            size = sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
            age = datetime.datetime.now(datetime.UTC).timestamp() - made
            listed = card.get("signatures")
            signatures = tuple(sorted(map(str, listed))) if isinstance(listed, Mapping | list) else ()
            found.append(
                Version(number, directory, retired, max(age, 0.0), size, _numbers(card.get("metrics")), signatures,
                        tuple(servers))
            )  # fmt: skip
    return sorted(found, key=lambda each: each.number, reverse=True)


def _numbers(metrics: Any, prefix: str = "") -> dict[str, float]:
    """The numbers of a card's metrics, nested ones by their path."""
    numbers: dict[str, float] = {}
    for name, value in (metrics or {}).items() if isinstance(metrics, Mapping) else ():
        if isinstance(value, Mapping):
            numbers |= _numbers(value, f"{prefix}{name}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            numbers[f"{prefix}{name}"] = value
    return numbers


def _served(
    servers: tuple[str, ...], protocol: Any, model_name: str, access: Access, deadline_s: float, *, must_answer: bool
) -> dict[str, dict[int, str]]:
    """Server -> version -> state; a server that does not answer is named in a warning, or an error if it must."""
    if not servers:
        return {}
    from mlcore.serving.clients import connect

    held: dict[str, dict[int, str]] = {}
    for server in servers:
        with connect(server, protocol, model_name, deadline_s=deadline_s, access=access) as client:
            try:
                states = client.versions()
                if client.protocol in ("tfs-grpc", "v1") and any(state in READY_STATES for state in states.values()):
                    default = client.metadata().version
                    states |= {default: _DEFAULT} if default in states else {}
                held[server] = states
            except (TransientError, UsageError, DataError) as error:
                if must_answer:
                    raise
                log.warning("%s", error)
    return held


_SHOWN_METRICS = ("test_accuracy", "accuracy", "ap50", "coco_ap")


def _metrics_text(metrics: Mapping[str, float]) -> str:
    """The metrics that say most, else the first two."""
    chosen = [name for wanted in _SHOWN_METRICS for name in metrics if name.rpartition(".")[2] == wanted][:3]
    return " ".join(f"{name}={metrics[name]:.4g}" for name in chosen or list(metrics)[:2])


def _table(found: list[Version]) -> str:
    """The versions as lines for people."""
    head = ("version", "state", "age", "size", "metrics", "signatures", "served by")
    highest = max((each.number for each in found if not each.retired), default=None)
    rows = [head]
    for each in found:
        state = "set aside" if each.retired else "highest" if each.number == highest else "kept"
        rows.append(
            (str(each.number), state, _age(each.age_s), format_amount(each.size, "B"), _metrics_text(each.metrics),
             ",".join(each.signatures), ", ".join(each.served_by))
        )  # fmt: skip
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = ["  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines)


def _age(seconds: float) -> str:
    days = int(seconds // 86400)
    return f"{days} d {int(seconds % 86400 // 3600):02d} h" if days else format_duration(seconds)
