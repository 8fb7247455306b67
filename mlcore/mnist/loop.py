"""The training loop on one machine: many steps a call, checkpoints, and an answer to SIGTERM within a call."""

import logging
import math
import time
from collections.abc import Callable
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
from mlcore.runtime.signals import stop_flag

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

    Raises:
        UsageError: The loss is not a number any more, or the model directory cannot be written.
        Stopped: SIGTERM or Ctrl-C; the state was saved.
    """
    step, saved, saved_at = first, first, time.monotonic()

    def save() -> None:
        nonlocal saved, saved_at
        curves.flush()
        if step != saved:
            checkpoints.save()
        saved, saved_at = step, time.monotonic()

    with stop_flag() as stop, Progress("mnist-train", plan.total, "steps", initial=first) as progress:
        while step < plan.total:
            if stop.is_set():
                save()
                log.info("stopped after step %d of %d; the state is saved", step, plan.total)
                raise stop.error()
            target = plan.next_stop(step)
            loss_sum, right, count = run(step, target - step)
            progress.update(target - step, note=f"loss {loss_sum / count:.4f}")
            step = target
            if not math.isfinite(loss_sum):
                raise UsageError(
                    f"--learning-rate={learner.learning_rate:g}: the loss is {loss_sum / count:g} after step {step}; "
                    "expected a rate at which it falls"
                )
            rate = float(learner.rate(tf.constant(step, tf.float32)))
            trained = Point("train", step, float(loss_sum / count), float(right / count))
            curves.add(trained, rate)
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
        if step > first:
            log.info("trained %d steps, %.0f examples/s", step - first, progress.rate * batch_size)
