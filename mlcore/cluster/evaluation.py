"""Evaluations passed from the evaluator to the chief: a file in the model directory. No TensorFlow."""

import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mlcore.cluster.config import Cluster
from mlcore.cluster.status import cluster_directory, read_status
from mlcore.cluster.timeouts import Timeouts
from mlcore.cluster.watch import Watch
from mlcore.runtime.outputs import atomic_file
from mlcore.runtime.signals import StopFlag

log = logging.getLogger(__name__)

_FILE = "evaluation.json"
_POLL_INTERVAL_S = 1.0
_REPORT_INTERVAL_S = 10.0


@dataclass(frozen=True)
class Evaluation:
    """Metrics of one checkpoint."""

    step: int
    metrics: Mapping[str, float]


def write_evaluation(model_dir: Path, evaluation: Evaluation) -> None:
    """The evaluator's side: tell the chief."""
    with atomic_file(cluster_directory(model_dir) / _FILE) as temporary:
        temporary.write_text(json.dumps({"step": evaluation.step, "metrics": dict(evaluation.metrics)}) + "\n")


def read_evaluation(model_dir: Path) -> Evaluation | None:
    """The newest evaluation; None where there is none."""
    try:
        record = json.loads((cluster_directory(model_dir) / _FILE).read_text())
        return Evaluation(int(record["step"]), {name: float(value) for name, value in record["metrics"].items()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def wait_for_evaluation(
    model_dir: Path,
    step: int,
    timeout_s: float,
    stop: StopFlag | None = None,
    while_waiting: Callable[[], None] = lambda: None,
) -> Evaluation | None:
    """The chief's side: the evaluation of the last checkpoint, or None where it has not come after `timeout_s`.

    Raises:
        Stopped: `stop` was set.
    """
    start = reported = time.monotonic()
    while True:
        evaluation = read_evaluation(model_dir)
        if evaluation is not None and evaluation.step == step:
            return evaluation
        now = time.monotonic()
        if now - start >= timeout_s:
            log.warning("the evaluator has not evaluated step %d within %.0f s", step, timeout_s)
            return None
        if now - reported >= _REPORT_INTERVAL_S:
            reported = now
            log.info("waiting for the evaluator to evaluate step %d", step)
        while_waiting()
        if stop is not None and stop.wait(_POLL_INTERVAL_S):
            raise stop.error()
        if stop is None:
            time.sleep(_POLL_INTERVAL_S)


def evaluate_continuously(
    cluster: Cluster,
    model_dir: Path,
    *,
    goal: str,
    newest: Callable[[], int | None],
    evaluate: Callable[[int], Mapping[str, float]],
    stop: StopFlag,
    timeouts: Timeouts,
) -> Evaluation | None:
    """The evaluator's life: evaluate each new checkpoint, until the chief is done.

    Args:
        cluster: The cluster.
        model_dir: Model directory.
        goal: What the job is for (`goal_of`).
        newest: Gives the step of the newest checkpoint; None where there is none.
        evaluate: Evaluates the checkpoint of a step; may raise FileNotFoundError where it was removed meanwhile.
        stop: Set on SIGTERM.
        timeouts: Bounds of waiting.

    Returns:
        The last evaluation.

    Raises:
        RestartError: The chief is gone.
        Stopped: SIGTERM.
    """
    watch = Watch(cluster, read_status(model_dir), goal, timeouts)
    last = read_evaluation(model_dir)
    while True:
        status = read_status(model_dir)
        over = watch.is_over(status)  # asked first: what was there then is evaluated below
        step = newest() if over or watch.may_read(status) else None
        if step is not None and (last is None or step != last.step):
            try:
                last = Evaluation(step, evaluate(step))
            except FileNotFoundError:
                log.info("the checkpoint of step %d is gone; taking the next", step)
            else:
                write_evaluation(model_dir, last)
            continue
        if over:
            return last
        if stop.wait(_POLL_INTERVAL_S):
            raise stop.error()
