"""The training loop: many steps a call, checkpoints, and an answer to SIGTERM within a call."""

import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mlcore.mnist.checkpoints import Checkpoints
from mlcore.mnist.curves import Curves, Point
from mlcore.mnist.learner import Learner
from mlcore.mnist.metrics import accuracy_of
from mlcore.mnist.tensorflow import tf
from mlcore.runtime.errors import UsageError
from mlcore.runtime.progress import Progress
from mlcore.runtime.results import print_metrics
from mlcore.runtime.signals import StopFlag, stop_flag

log = logging.getLogger(__name__)

_EVALUATIONS = 10  # at least, over a whole training: a curve wants some points


@dataclass(frozen=True)
class Plan:
    """When what happens.

    Attributes:
        total: Steps in all.
        per_epoch: Steps an epoch.
        per_point: Steps between two points of the curve of the training loss.
        checkpoint_interval_s: Least time between two checkpoints.
    """

    total: int
    per_epoch: int
    per_point: int
    checkpoint_interval_s: float

    @property
    def per_evaluation(self) -> int:
        """Steps between two evaluations: an epoch, or a tenth of a shorter training."""
        return min(self.per_epoch, math.ceil(self.total / _EVALUATIONS))

    def is_evaluation(self, step: int) -> bool:
        """Whether the network is evaluated after this step."""
        return step % self.per_evaluation == 0 or step == self.total

    def next_stop(self, step: int) -> int:
        """The next step after which there is something to do."""
        after = [every * (step // every + 1) for every in (self.per_point, self.per_evaluation)]
        return min(*after, self.total)


@dataclass(frozen=True)
class Round:
    """What happened since the last stop.

    Attributes:
        step: Steps made in all.
        loss: Mean loss of the examples of these steps.
        accuracy: Share of right answers among them.
        rate: Steps a second since the beginning.
    """

    step: int
    loss: float
    accuracy: float
    rate: float


def rounds(
    learner: Learner,
    run: Callable[[int, int], npt.NDArray[np.float64]],
    *,
    first: int,
    plan: Plan,
    stop: StopFlag,
    agree: Callable[[bool], bool] = bool,
) -> Iterator[Round]:
    """Train from step `first` to the end of the plan, or until a stop, and give the news at each point of the plan.

    Args:
        learner: What is trained; restored to `first`.
        run: Makes steps, as `steps_in_graph` does.
        first: Steps that were made before.
        plan: When what happens.
        stop: Ends it at the next point.
        agree: Of several processes that train in step: whether any of them wishes to stop.

    Raises:
        UsageError: The loss is not a number any more.
    """
    step = first
    with Progress("mnist-train", plan.total, "steps", initial=first) as progress:
        while step < plan.total and not agree(stop.is_set()):
            target = plan.next_stop(step)
            loss_sum, right, count = run(step, target - step)
            progress.update(target - step, note=f"loss {loss_sum / count:.4f}")
            step = target
            if not math.isfinite(loss_sum):
                raise UsageError(
                    f"--learning-rate={learner.learning_rate:g}: the loss is {loss_sum / count:g} after step {step}; "
                    "expected a rate at which it falls"
                )
            yield Round(step, float(loss_sum / count), float(right / count), progress.rate)


def fit(
    learner: Learner,
    run: Callable[[int, int], npt.NDArray[np.float64]],
    evaluate: Callable[[], tuple[float, npt.NDArray[np.int64]]],
    *,
    first: int,
    plan: Plan,
    checkpoints: Checkpoints,
    curves: Curves,
    batch_size: int,
    agree: Callable[[bool], bool] = bool,
) -> None:
    """Train from step `first` to the end of the plan, and save the last state.

    Stopped and begun again, it makes the same steps and curves as in one go: whatever it counts begins anew at each
    point, and checkpoints are saved at points only.

    Args:
        learner: What is trained; restored to `first`.
        run: Makes steps, as `steps_in_graph` does.
        evaluate: Evaluates on the validation part.
        first: Steps that were made before.
        plan: When what happens.
        checkpoints: Where the state is saved.
        curves: Get a point each time.
        batch_size: Examples a step, for the progress.
        agree: See `rounds`.

    Raises:
        UsageError: The loss is not a number any more, or the model directory cannot be written.
        Stopped: SIGTERM or Ctrl-C; the state was saved.
    """
    step, saved, saved_at, rate = first, first, time.monotonic(), 0.0

    def save() -> None:
        nonlocal saved, saved_at
        curves.flush()
        if step != saved:
            checkpoints.save()
        saved, saved_at = step, time.monotonic()

    with stop_flag() as stop:
        for news in rounds(learner, run, first=first, plan=plan, stop=stop, agree=agree):
            step, rate = news.step, news.rate
            trained = Point("train", step, news.loss, news.accuracy)
            curves.add(trained, float(learner.rate(tf.constant(step, tf.float32))))
            if plan.is_evaluation(step):
                loss, confusion = evaluate()
                valid = Point("validation", step, loss, accuracy_of(confusion))
                curves.add(valid)
                log.info(
                    "step %d of %d (epoch %.1f): loss %.4f, accuracy %.4f; validation: loss %.4f, accuracy %.4f",
                    step, plan.total, step / plan.per_epoch, trained.loss, trained.accuracy, valid.loss, valid.accuracy,
                )  # fmt: skip
                print_metrics(
                    accuracy=valid.accuracy, loss=valid.loss,
                    train_accuracy=trained.accuracy, train_loss=trained.loss,
                )  # fmt: skip
            if time.monotonic() - saved_at >= plan.checkpoint_interval_s:
                save()
        save()
        if step < plan.total:
            log.info("stopped after step %d of %d; the state is saved", step, plan.total)
            raise stop.error()
    if step > first:
        log.info("trained %d steps, %.0f examples/s", step - first, rate * batch_size)
