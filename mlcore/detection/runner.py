"""How a strategy runs steps: one machine here; a cluster has a runner of its own with the same interface."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from mlcore.detection.tensorflow import import_tensorflow
from mlcore.detection.trainer import TOTAL_LOSS, Trainer
from mlcore.runtime.signals import StopFlag

if TYPE_CHECKING:
    import tensorflow as tf


@dataclass(frozen=True)
class NonFinite:
    """A step whose loss was NaN or infinite.

    Attributes:
        step: Its number, from 1.
        loss: The loss.
        records: Numbers of the records in its batch (`input.describe_record` names them).
    """

    step: int
    loss: float
    records: tuple[int, ...]


@dataclass(frozen=True)
class Window:
    """What happened in a run of steps.

    Attributes:
        steps: Steps that were done; fewer than asked for after a stop.
        seconds: How long they took.
        losses: Mean of each loss over the steps.
        non_finite: The first step that was not finite, if any.
        stopped: Whether a stop was asked for, and all that train together know it.
    """

    steps: int
    seconds: float
    losses: Mapping[str, float]
    non_finite: NonFinite | None = None
    stopped: bool = False


class StepRunner(Protocol):
    """Runs steps of a trainer."""

    def run(self, steps: int, stop: StopFlag) -> Window:
        """Do `steps` steps, or fewer once `stop` is set; when it returns, none is under way."""

    def agree(self, wish: bool) -> bool:
        """Whether any of the processes that take the same steps wishes it; all of them ask at the same point."""


class LocalRunner:
    """Runs steps in this process: on one device, or on all replicas of a strategy in step, here and in other processes.

    Args:
        trainer: Made in the scope of `strategy`.
        strategy: The strategy.
        dataset: Batches; a distributed dataset of the strategy where it has several replicas.
        agree: See `StepRunner`; for a strategy of several processes.
        deterministic: Every operation from now on computes the same each time.
    """

    def __init__(
        self,
        trainer: Trainer,
        strategy: tf.distribute.Strategy,
        dataset: Any,
        agree: Callable[[bool], bool] = bool,
        *,
        deterministic: bool = False,
    ) -> None:
        tf = import_tensorflow()
        self.agree = agree
        self._first_step = trainer.steps_done()
        self._iterator = iter(dataset)
        if deterministic:
            # Not before the iterator is made: tf.data takes any shuffling for chance and would then prepare each batch
            # in one thread, when it is asked for. Our dataset keeps its order, and has random numbers by the example.
            tf.config.experimental.enable_op_determinism()

        def one_step(iterator: Any) -> tuple[dict[str, Any], Any]:
            losses, records = strategy.run(trainer.step, args=(next(iterator),))
            mean = {
                name: strategy.reduce(tf.distribute.ReduceOp.MEAN, value, axis=None) for name, value in losses.items()
            }
            return mean, tf.concat(strategy.experimental_local_results(records), axis=0)

        # No AutoGraph: nothing in a step branches on a tensor, and converting official's code is slower than tracing.
        self._step = tf.function(one_step, autograph=False)

    def run(self, steps: int, stop: StopFlag) -> Window:
        """See `StepRunner`. Values are fetched at the end only, so that a GPU is never waited for within."""
        started = time.monotonic()
        results: list[tuple[Mapping[str, Any], Any]] = []
        while not (stopped := self.agree(stop.is_set())) and len(results) < steps:
            results.append(self._step(self._iterator))
        window = dataclasses.replace(summarize(self._first_step, results, started), stopped=stopped)
        self._first_step += window.steps
        return window


def summarize(first_step: int, results: Sequence[tuple[Mapping[str, Any], Any]], started: float) -> Window:
    """A window from what its steps returned (the losses and the records of each), begun at `time.monotonic()`."""
    total: dict[str, float] = {}
    bad: NonFinite | None = None
    for index, (losses, records) in enumerate(results):
        values = {name: float(value) for name, value in losses.items()}
        if bad is None and not math.isfinite(values[TOTAL_LOSS]):
            bad = NonFinite(first_step + index + 1, values[TOTAL_LOSS], tuple(int(number) for number in records))
        for name, value in values.items():
            total[name] = total.get(name, 0.0) + value
    means = {name: value / len(results) for name, value in total.items()}
    return Window(len(results), time.monotonic() - started, means, bad)
