"""How a worker that is asked to stop leaves without cutting a closure: a note to the chief, and the chief's answer.

The worker writes `cluster/leaving/worker-1`; the chief gives it no further closure and removes the note once the last
one is through. No TensorFlow.
"""

import contextlib
import logging
from collections.abc import Sequence
from pathlib import Path

from mlcore.cluster.config import Member
from mlcore.cluster.status import cluster_directory

log = logging.getLogger(__name__)

_DIRECTORY = "leaving"


def _note(model_dir: Path, member: Member) -> Path:
    return cluster_directory(model_dir) / _DIRECTORY / f"{member.role}-{member.index}"


def announce_leaving(model_dir: Path, me: Member) -> None:
    """The worker's side: ask to be taken out."""
    note = _note(model_dir, me)
    with contextlib.suppress(OSError):  # a full disk: the chief then sees a worker that dies, which it can bear
        note.parent.mkdir(parents=True, exist_ok=True)
        note.touch()


def was_let_go(model_dir: Path, me: Member) -> bool:
    """The worker's side: whether the chief has let it go."""
    return not _note(model_dir, me).exists()


def return_to_work(model_dir: Path, me: Member) -> None:
    """The worker's side: a new process of a name does not leave because its predecessor wanted to."""
    with contextlib.suppress(OSError):
        _note(model_dir, me).unlink(missing_ok=True)


def who_is_leaving(model_dir: Path, workers: Sequence[Member]) -> list[Member]:
    """The chief's side: the workers that ask to be taken out."""
    try:
        names = {entry.name for entry in (cluster_directory(model_dir) / _DIRECTORY).iterdir()}
    except OSError:
        return []
    return [worker for worker in workers if f"{worker.role}-{worker.index}" in names]


def let_go(model_dir: Path, worker: Member) -> None:
    """The chief's side: the worker's last closure is through."""
    with contextlib.suppress(OSError):
        _note(model_dir, worker).unlink(missing_ok=True)
