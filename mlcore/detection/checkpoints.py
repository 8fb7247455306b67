"""Checkpoints of a model directory: which are there, which are whole, the best one.

`ckpt-<step>.index` and `ckpt-<step>.data-*` are checkpoints of training (model, optimizer, global step); the last few
are kept. `best/` holds the one whose evaluation during training was best, and `best/best.json` says which and why.
"""

from __future__ import annotations

import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlcore.detection.tensorflow import import_tensorflow
from mlcore.runtime.errors import DataError, UsageError
from mlcore.runtime.outputs import atomic_file

log = logging.getLogger(__name__)

PREFIX = "ckpt"
BEST = "best"
BEST_FILE = "best.json"
_INDEX = re.compile(rf"{PREFIX}-(\d+)\.index")


def list_checkpoints(directory: Path) -> dict[int, Path]:
    """Step -> prefix of every checkpoint in a directory, oldest first, whole or not. Does not load TensorFlow."""
    found = {}
    if directory.is_dir():
        for entry in directory.iterdir():
            match = _INDEX.fullmatch(entry.name)
            if match:
                found[int(match[1])] = entry.with_suffix("")
    return dict(sorted(found.items()))


def fault_of(prefix: Path) -> str | None:
    """What is wrong with a checkpoint, or None where every tensor in it can be read and has the right checksum."""
    tf = import_tensorflow()
    try:
        reader = tf.train.load_checkpoint(str(prefix))
        for name in reader.get_variable_to_dtype_map():
            reader.get_tensor(name)
    except (tf.errors.OpError, ValueError, IndexError, RuntimeError) as error:
        return str(error.args[-1] if error.args else error).strip().splitlines()[0]
    return None


def newest_good(directory: Path) -> tuple[int, Path] | None:
    """Step and prefix of the newest checkpoint that is whole; says so when it has to pass over a damaged one."""
    for step, prefix in reversed(list_checkpoints(directory).items()):
        fault = fault_of(prefix)
        if fault is None:
            return step, prefix
        log.warning("%s is damaged (%s); falling back to the one before", prefix, fault)
    return None


def find_checkpoint(model_dir: Path, which: str | int = "latest") -> Path:
    """Prefix of a checkpoint, such as `model/ckpt-500`, for `experiment.restore`.

    Args:
        model_dir: Directory of `train`.
        which: `latest` (the newest that is whole), `best` (of the evaluations during training), or a step.

    Raises:
        UsageError: `which` is none of these.
        DataError: There is none, or the one asked for is damaged.
    """
    if which == "latest":
        found = newest_good(model_dir)
        if found is None:
            state = "every checkpoint is damaged" if list_checkpoints(model_dir) else "no checkpoint (ckpt-*.index)"
            raise DataError(f"{model_dir}: {state}; expected a model directory of `mlcore train`")
        return found[1]
    if which == "best":
        best = read_best(model_dir)
        if best is None:
            raise DataError(f"{model_dir}: no best checkpoint; training keeps one when it evaluates (val records)")
        return _whole(best.prefix)
    if not str(which).isdecimal():
        raise UsageError(f"checkpoint {which}: expected latest, best or a step")
    step = int(which)
    at_hand = {**list_checkpoints(model_dir / BEST), **list_checkpoints(model_dir)}
    if step not in at_hand:
        steps = ", ".join(map(str, sorted(at_hand))) or "none"
        raise DataError(f"{model_dir}: no checkpoint of step {step}; there are: {steps}")
    return _whole(at_hand[step])


def _whole(prefix: Path) -> Path:
    fault = fault_of(prefix)
    if fault:
        raise DataError(f"{prefix}: is damaged ({fault})")
    return prefix


@dataclass(frozen=True)
class Best:
    """The best checkpoint so far.

    Attributes:
        prefix: Its prefix, in `best/`.
        step: Its step.
        metric: Name of the metric that decided.
        value: The metric's value.
    """

    prefix: Path
    step: int
    metric: str
    value: float


def read_best(model_dir: Path) -> Best | None:
    """What `best/best.json` says, or None where there is none.

    Raises:
        DataError: The file is damaged.
    """
    path = model_dir / BEST / BEST_FILE
    try:
        record: dict[str, Any] = json.loads(path.read_text())
        step = int(record["step"])
        prefix = model_dir / BEST / f"{PREFIX}-{step}"
        return Best(prefix, step, str(record["metric"]), float(record["value"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error


def write_best(model_dir: Path, checkpoint: Any, *, step: int, metric: str, value: float) -> Best:
    """Save `checkpoint` (a tf.train.Checkpoint) as the best one and remove the one that was."""
    folder = model_dir / BEST
    folder.mkdir(exist_ok=True)
    prefix = folder / f"{PREFIX}-{step}"
    checkpoint.write(str(prefix))
    with atomic_file(folder / BEST_FILE) as temporary:
        temporary.write_text(json.dumps({"step": step, "metric": metric, "value": value}) + "\n")
    for old_step, old in list_checkpoints(folder).items():
        if old_step != step:
            remove_checkpoint(old)
    return Best(prefix, step, metric, value)


def remove_checkpoint(prefix: Path) -> None:
    """Remove a checkpoint's files, the index first, so that it is never taken for a whole one."""
    prefix.with_name(f"{prefix.name}.index").unlink(missing_ok=True)
    for data in prefix.parent.glob(f"{prefix.name}.data-*"):
        data.unlink(missing_ok=True)
