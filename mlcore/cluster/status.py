"""How the chief tells the others how its run goes: one small file in the model directory. No TensorFlow.

TensorFlow has no call that ends a worker or a parameter server, and all members share the model directory anyway,
because parameter servers write the checkpoints. The file changes only when the state does.

A run is known by a random name, so that the marker of an earlier run in the same directory ends nobody. A run's `goal`
(members and what they train for) lets a member that comes late, when its chief is done and gone, know that the marker
is meant for it.
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mlcore.cluster.config import Cluster
from mlcore.runtime.errors import EXIT_BUG, MlcoreError, RestartError, Stopped
from mlcore.runtime.outputs import atomic_file

log = logging.getLogger(__name__)

State = Literal["starting", "running", "gathering", "done", "failed", "stopped", "restarting"]

DIRECTORY = "cluster"
STATUS_FILE = "status.json"


@dataclass(frozen=True)
class Status:
    """What the chief last said.

    Attributes:
        run: Random name of the chief's process.
        goal: Digest of what the run is for.
        state: `starting` until the model directory is the run's own; `gathering` once those that train in step may
            join; `done` and `failed` are final; after `stopped` and `restarting` another chief is expected.
        exit_code: The chief's, where it has ended.
        message: Why it failed.
    """

    run: str
    goal: str
    state: State = "starting"
    exit_code: int = 0
    message: str = ""


def goal_of(cluster: Cluster, **parameters: Any) -> str:
    """A digest that is the same for all members of one job, and differs for a job that trains on to something else."""
    text = json.dumps([sorted(m.address for m in cluster.members), parameters], default=str, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def cluster_directory(model_dir: Path) -> Path:
    """Where the members of a cluster leave each other word."""
    return Path(model_dir) / DIRECTORY


def read_status(model_dir: Path) -> Status | None:
    """What the chief last said; None where it has said nothing that can be read."""
    directory = cluster_directory(model_dir)
    try:
        os.listdir(directory)  # noqa: PTH208 - opening the directory makes an NFS client ask for new names
        record = json.loads((directory / STATUS_FILE).read_text())
        return Status(**record)
    except (OSError, ValueError, TypeError):
        return None


def exit_code_of(error: BaseException) -> int:
    """With which code an error ends a step."""
    return error.exit_code if isinstance(error, MlcoreError | Stopped) else EXIT_BUG


class StatusFile:
    """The chief's side: says how its run goes.

    Args:
        model_dir: Model directory, shared by all members.
        goal: From `goal_of`.
    """

    def __init__(self, model_dir: Path, goal: str) -> None:
        self._path = cluster_directory(model_dir) / STATUS_FILE
        self._status = Status(run=uuid.uuid4().hex, goal=goal)

    def say(self, state: State, exit_code: int = 0, message: str = "") -> None:
        """Write a state.

        Raises:
            OSError: The model directory cannot be written.
        """
        self._status = dataclasses.replace(self._status, state=state, exit_code=exit_code, message=message)
        with atomic_file(self._path) as temporary:
            temporary.write_text(json.dumps(dataclasses.asdict(self._status), indent=1) + "\n")

    def say_error(self, error: BaseException) -> None:
        """Write how an error ends the run; a directory that cannot be written is only logged here."""
        state: State = "failed"
        if isinstance(error, Stopped):
            state = "stopped"
        elif isinstance(error, RestartError):
            state = "restarting"
        with contextlib.suppress(OSError):
            self.say(state, exit_code_of(error), " ".join(str(error).split())[:500])
            return
        log.warning("%s cannot be written: the other members end when they miss the chief", self._path)
