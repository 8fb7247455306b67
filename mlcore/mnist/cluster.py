"""MNIST on a cluster: the same learner and batches, as closures on workers or in step with the others of a team.

A closure is a few steps on the batches with the next numbers, so that the workers share each epoch's permutation as one
machine would go through it; a team cuts each of these batches. Checkpoints and curves are those of one machine; a run
can go on in any of them.
"""

import copy
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mlcore.cluster.config import Cluster
from mlcore.cluster.coordinator import Coordinator
from mlcore.cluster.evaluation import evaluate_continuously
from mlcore.cluster.saving import trace_saving
from mlcore.cluster.team import Team
from mlcore.cluster.timeouts import Timeouts
from mlcore.data.mnist import MnistData
from mlcore.mnist.batches import Batches
from mlcore.mnist.checkpoints import Checkpoints
from mlcore.mnist.learner import Learner, callable_run, evaluator, many_steps
from mlcore.mnist.metrics import accuracy_of
from mlcore.mnist.tensorflow import tf
from mlcore.runtime.results import print_metrics
from mlcore.runtime.signals import stop_flag

log = logging.getLogger(__name__)

# Enough that the way to the worker costs little, few enough that a stop drains in a second.
STEPS_PER_CLOSURE = 20


def steps_on_workers(
    coordinator: Coordinator, learner: Learner, batches: Batches
) -> Callable[[int, int], npt.NDArray[np.float64]]:
    """A function that has the workers make training steps.

    Returns:
        run(first, steps): as of `learner.steps_in_graph`; returns when the steps are made.
    """
    inputs = [coordinator.per_worker_copy(batches._imgs), coordinator.per_worker_copy(batches._labels)]

    def closure(imgs: Any, labels: Any, first: Any, count: Any) -> Any:
        local = copy.copy(batches)
        local._imgs, local._labels = imgs, labels
        return many_steps(learner.train_step, local, first, first + tf.cast(count, tf.int64))

    train = tf.function(closure, autograph=False)

    def run_steps(first: int, steps: int) -> npt.NDArray[np.float64]:
        sums = np.zeros(3)

        def add(_steps: int, result: Any) -> None:
            nonlocal sums
            sums = sums + np.asarray(result, np.float64)

        # As many closures for each worker, so that none waits for another's last one.
        workers = len(coordinator.workers)
        rounds = max(1, round(steps / (workers * STEPS_PER_CLOSURE)))
        size = -(-steps // (workers * rounds))
        coordinator.run(train, inputs, steps, first=first, steps_per_closure=size, on_result=add)
        # What a lost worker had counted was made again elsewhere.
        learner.step.assign(first + steps)
        return sums

    return run_steps


def steps_in_team(team: Team, learner: Learner, batches: Batches) -> Callable[[int, int], npt.NDArray[np.float64]]:
    """A function that makes training steps together with the others of a team, each on its share of every batch.

    Returns:
        run(first, steps): as of `learner.steps_in_graph`; all members must call it alike.
    """
    strategy = team.strategy

    def step(imgs: Any, labels: Any) -> Any:  # a loop cannot be inside of `run`, which has to meet the others in it
        return strategy.experimental_local_results(strategy.run(learner.train_step, args=(imgs, labels)))[0]

    def run(first: Any, end: Any) -> Any:
        sums = many_steps(step, batches, first, end)
        return strategy.reduce(tf.distribute.ReduceOp.SUM, strategy.run(tf.identity, args=(sums,)), axis=None)

    return callable_run(run)


class ClusterCheckpoints(Checkpoints):
    """Checkpoints of variables that are on parameter servers."""

    def __init__(self, learner: Learner, model_dir: Path, keep: int = 3) -> None:
        super().__init__(learner, model_dir, keep)
        trace_saving(self._checkpoint)


def evaluate_run(
    cluster: Cluster,
    model_dir: Path,
    data: MnistData,
    *,
    make_learner: Callable[[], Learner],
    validation_size: int,
    goal: str,
    timeouts: Timeouts,
) -> None:
    """The evaluator's part: the metrics of the validation part for each new checkpoint, until the chief is done.

    Raises:
        RestartError: The chief is gone.
        Stopped: SIGTERM or Ctrl-C.
    """
    learner = make_learner()
    checkpoint = learner.checkpoint()
    measure = evaluator(learner.network, data.train[len(data.train) - validation_size :])

    def newest() -> int | None:
        steps = [int(path.stem.rpartition("-")[2]) for path in model_dir.glob("ckpt-*.index")]
        return max(steps, default=None)

    def evaluate(step: int) -> Mapping[str, float]:
        try:
            checkpoint.read(str(model_dir / f"ckpt-{step}")).expect_partial()
        except tf.errors.OpError as error:
            raise FileNotFoundError(f"ckpt-{step}: {error.message}") from error
        loss, confusion = measure()
        metrics = {"accuracy": accuracy_of(confusion), "loss": loss}
        log.info("step %d: validation loss %.4f, accuracy %.4f", step, loss, metrics["accuracy"])
        print_metrics(**{"step": step, **metrics})
        return metrics

    with stop_flag() as stop:
        evaluate_continuously(
            cluster, model_dir, goal=goal, newest=newest, evaluate=evaluate, stop=stop, timeouts=timeouts
        )
