"""The loop of training: runs of steps, and between them checkpoints, evaluations, summaries and the reasons to stop.

It knows neither the model nor the strategy: a `Trainer` says what a step is, a `StepRunner` runs them.
"""

from __future__ import annotations

import contextlib
import logging
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mlcore.cluster.tensorflow import not_saved
from mlcore.detection.checkpoints import Best, find_checkpoint, list_checkpoints, read_best
from mlcore.detection.input import describe_record
from mlcore.detection.runner import NonFinite, StepRunner, Window
from mlcore.detection.summaries import Summaries
from mlcore.detection.tensorflow import import_tensorflow
from mlcore.detection.trainer import TOTAL_LOSS, Trainer, checkpoint_manager
from mlcore.detection.validation import Validates
from mlcore.runtime.errors import DataError
from mlcore.runtime.progress import Progress
from mlcore.runtime.results import print_metrics
from mlcore.runtime.signals import StopFlag, stop_flag

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the loop does when.

    Attributes:
        steps: Steps at the end.
        summary_interval: Steps between two lines of losses.
        checkpoint_interval: Steps between two checkpoints.
        eval_interval: Steps between two evaluations; 0: none.
        metric: Metric of the evaluation by which the best checkpoint is kept; the higher the better.
        patience: Evaluations without a better metric after which training stops; 0: never.
        shards: Files of the records, to name those of a batch whose loss is not finite.
    """

    steps: int
    summary_interval: int
    checkpoint_interval: int
    eval_interval: int
    metric: str
    patience: int
    shards: Sequence[Path]

    def next_event(self, step: int) -> int:
        """The next step after which there is something to do."""
        intervals = (self.summary_interval, self.checkpoint_interval, self.eval_interval)
        return min(self.steps, *((step // every + 1) * every for every in intervals if every > 0))

    def out_of_patience(self, step: int, best: Best | None) -> bool:
        """Whether the evaluation of a step was one too many without a better one."""
        return bool(self.patience and best and step - best.step >= self.patience * self.eval_interval)


@dataclass
class Outcome:
    """How training went.

    Attributes:
        step: Steps done in all.
        loss: Mean loss of the last window.
        steps_per_second: While training, without the first step, evaluations and checkpoints.
        metrics: Of the last evaluation.
        best: The best checkpoint.
        stopped_early: Whether it ended for lack of progress.
    """

    step: int = 0
    loss: float = math.nan
    steps_per_second: float = 0.0
    metrics: Mapping[str, float] = field(default_factory=dict)
    best: Best | None = None
    stopped_early: bool = False


class TrainingLoop:
    """Trains until the plan's last step.

    Args:
        trainer: Restored or initialised.
        runner: Runs its steps.
        plan: What to do when.
        model_dir: Where checkpoints and summaries go.
        validation: Evaluates; None: somebody else does, or nobody.
        first_step_done: Called once, when the first step is done.
        stop_early: Asked after each checkpoint with its step: whether somebody else's evaluations say so.
        leads: Whether this process writes: checkpoints, summaries, metrics. Others that take the same steps do not.
    """

    def __init__(
        self,
        trainer: Trainer,
        runner: StepRunner,
        plan: Plan,
        model_dir: Path,
        *,
        validation: Validates | None = None,
        first_step_done: Callable[[], None] = lambda: None,
        stop_early: Callable[[int], bool] = lambda _: False,
        leads: bool = True,
    ) -> None:
        self.trainer, self.runner, self.plan, self.model_dir = trainer, runner, plan, model_dir
        self._validation, self._stop_early, self._leads = validation, stop_early, leads
        self._first_step_done = first_step_done
        self._manager = checkpoint_manager(trainer, model_dir) if leads else None
        self._outcome = Outcome(step=trainer.steps_done(), best=read_best(model_dir))
        self._saved_step = self._outcome.step
        self._timed_steps, self._timed_s = 0, 0.0

    def run(self) -> Outcome:
        """Train.

        Raises:
            DataError: A loss, or the weights, are not finite.
            UsageError: A checkpoint cannot be written.
            TransientError: The disk is full.
            Stopped: After SIGTERM or Ctrl-C, once a checkpoint is saved.
        """
        with (
            Summaries(self.model_dir, self._outcome.step) as self._summaries,
            Progress("train", total=self.plan.steps, unit="steps", initial=self._outcome.step) as self._progress,
        ):
            # The first step is traced, which takes long and loses nothing: until then a signal ends at once.
            self._account(first := self.runner.run(1, StopFlag()), timed=False)
            self._first_step_done()
            with stop_flag() as stop:
                self._after(first, stop)
                while self._outcome.step < self.plan.steps and not self._outcome.stopped_early:
                    until = self.plan.next_event(self._outcome.step)
                    self._account(window := self.runner.run(until - self._outcome.step, stop))
                    self._after(window, stop)
        return self._outcome

    def evaluate_last(self) -> Outcome:
        """Only the evaluation of the last step, for a run that was stopped between its last checkpoint and that.

        Raises:
            Stopped: After SIGTERM or Ctrl-C.
        """
        if self._validation is not None:
            with Summaries(self.model_dir, self._outcome.step) as self._summaries, stop_flag() as stop:
                self._outcome.stopped_early = self._validate(self._validation, self._outcome.step, stop)
        return self._outcome

    def _account(self, window: Window, *, timed: bool = True) -> None:
        if window.non_finite:
            self._fail(window.non_finite)
        if not window.steps:
            return
        self._step_before, self._outcome.step = self._outcome.step, self.trainer.steps_done()
        self._outcome.loss = window.losses[TOTAL_LOSS]
        if timed:
            self._timed_steps += window.steps
            self._timed_s += window.seconds
            self._outcome.steps_per_second = self._timed_steps / max(self._timed_s, 1e-9)
        self._progress.update(self._outcome.step - self._step_before, note=f"loss {self._outcome.loss:.4g}")

    def _after(self, window: Window, stop: StopFlag) -> None:
        """Everything that is due after the steps just done; the same in all processes that take them together."""
        step = self._outcome.step
        if window.stopped:
            self._save()
            log.info("stopped after step %d by %s; run again to go on", step, stop.error())
            raise stop.error()
        last = step >= self.plan.steps
        if self._leads and (self._due(self.plan.summary_interval) or last):
            print_metrics(step=step, loss=self._outcome.loss)
            rate = self.trainer.learning_rate()
            scalars = {**window.losses, "learning_rate": rate, "steps_per_second": self._outcome.steps_per_second}
            self._summaries.train(step, scalars)
        evaluates = self.plan.eval_interval > 0 and (self._due(self.plan.eval_interval) or last)
        if self._due(self.plan.checkpoint_interval) or last or evaluates:
            self._save()
            no_better = self._stop_early(step) and not last
            if evaluates and self._validation is not None:
                no_better = self._validate(self._validation, step, stop)
            # While another process evaluates, a signal need not wait for it.
            with stop.raising() if evaluates and not last else contextlib.nullcontext():
                self._outcome.stopped_early = self.runner.agree(no_better)

    def _due(self, interval: int) -> bool:
        """Whether a multiple of the interval was reached or passed (a cluster may pass it) by the last steps."""
        return interval > 0 and self._outcome.step // interval > self._step_before // interval

    def _save(self) -> None:
        step = self._outcome.step
        if not self.trainer.weights_are_finite():
            self._fail(NonFinite(step, math.nan, ()))
        if self._manager is not None and step != self._saved_step:
            try:
                self._manager.save(checkpoint_number=step)
            except import_tensorflow().errors.OpError as error:
                shutil.rmtree(self.model_dir / f"ckpt-{step}_temp", ignore_errors=True)
                raise not_saved(self.model_dir, step, error) from error
            self._saved_step = step
            log.info("saved %s", self.model_dir / f"ckpt-{step}")

    def _validate(self, validation: Validates, step: int, stop: StopFlag) -> bool:
        """Evaluate; whether this was one evaluation too many without a better one."""
        with stop.raising():  # the checkpoint of this step is saved, so nothing is lost
            self._outcome.metrics = validation.run(step, self._summaries)
        best = self._outcome.best = validation.best
        if not self.plan.out_of_patience(step, best):
            return False
        assert best is not None
        log.info("no better %s since step %d; stopping early", self.plan.metric, best.step)
        return True

    def _fail(self, bad: NonFinite) -> None:
        """Stop for good: training on from here, or again from the last checkpoint, would end the same way."""
        last = "no checkpoint was saved before"
        if list_checkpoints(self.model_dir):
            last = f"last good checkpoint: {find_checkpoint(self.model_dir)}"
        if not bad.records:
            raise DataError(f"step {bad.step}: the weights are not finite; {last}; try a lower --learning-rate")
        images = ", ".join(describe_record(self.plan.shards, record) for record in bad.records)
        raise DataError(
            f"step {bad.step}: the loss is {bad.loss}, on the images with source ids {images}; {last}; "
            "look at these images, or try a lower --learning-rate or --clip-norm=1"
        )
