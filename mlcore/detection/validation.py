"""Evaluations during training: the metrics of the val split, and keeping the best checkpoint by one of them."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mlcore.data.records import RecordSet
from mlcore.detection.checkpoints import Best, list_checkpoints, read_best, write_best
from mlcore.detection.summaries import Summaries
from mlcore.detection.tensorflow import import_tensorflow
from mlcore.detection.trainer import Trainer
from mlcore.runtime.results import print_metrics

if TYPE_CHECKING:
    from official.core.config_definitions import ExperimentConfig

log = logging.getLogger(__name__)

_PRINTED = ("coco_ap", "ap50", "ap75", "ar_100_detections")  # the rest is in TensorBoard

Evaluate = Callable[[], Mapping[str, float]]


class Validates(Protocol):
    """What the loop of training wants of an evaluation."""

    @property
    def best(self) -> Best | None:
        """The best checkpoint so far."""

    def run(self, step: int, summaries: Summaries) -> Mapping[str, float]:
        """Evaluate the step just saved, print the metrics, and keep the checkpoint if it is the best."""


class Validation:
    """Evaluates a trainer's model, on one machine while it trains or from its checkpoints.

    Args:
        trainer: The trainer, with the weights to evaluate.
        evaluate: Metrics of its model as it is when called.
        model_dir: Where the best checkpoint goes.
        metric: Metric by which it is the best; the higher the better.

    Attributes:
        best: The best checkpoint so far.
    """

    best: Best | None

    def __init__(self, trainer: Trainer, evaluate: Evaluate, model_dir: Path, *, metric: str) -> None:
        self._trainer, self._evaluate, self._model_dir, self._metric = trainer, evaluate, model_dir, metric
        self.best = read_best(model_dir)

    def run(self, step: int, summaries: Summaries) -> Mapping[str, float]:
        """Evaluate, print the metrics, and keep the checkpoint if it is the best."""
        with _averaged_weights(self._trainer.optimizer):
            metrics = self._evaluate()
            value = metrics[self._metric]
            if not math.isnan(value) and (self.best is None or value > self.best.value):
                self.best = write_best(
                    self._model_dir, self._trainer.checkpoint, step=step, metric=self._metric, value=value
                )
        summaries.validation(step, metrics)
        print_metrics(**{"step": step, **{name: metrics[name] for name in (*_PRINTED, self._metric)}})
        best = self.best.value if self.best else math.nan
        log.info("step %d: %s %.4f (best %.4f)", step, self._metric, value, best)
        return metrics


class _averaged_weights:
    """Swaps in the moving average of the weights, where the optimizer keeps one."""

    def __init__(self, optimizer: Any) -> None:
        self._swap: Callable[[], None] = getattr(optimizer, "swap_weights", lambda: None)

    def __enter__(self) -> None:
        self._swap()

    def __exit__(self, *_: object) -> None:
        self._swap()


class CheckpointEvaluator:
    """Evaluates checkpoints of a model directory on the val split, and keeps the best; made late, as it takes seconds.

    Args:
        directory: Model directory.
        config: The experiment.
        records: With a val split.
        metric: Metric by which a checkpoint is the best.
    """

    def __init__(self, directory: Path, config: ExperimentConfig, records: RecordSet, *, metric: str) -> None:
        self._directory, self._config, self._records, self._metric = directory, config, records, metric
        self._made: tuple[Trainer, Validation] | None = None

    @property
    def best(self) -> Best | None:
        """The best checkpoint so far."""
        return self._made[1].best if self._made else read_best(self._directory)

    def run(self, step: int, summaries: Summaries) -> Mapping[str, float]:
        """Evaluate the checkpoint of a step, print the metrics, and keep it if it is the best.

        Raises:
            FileNotFoundError: It is not there (any more).
        """
        tf = import_tensorflow()
        if self._made is None:
            from mlcore.detection.run import make_evaluate

            trainer = Trainer(copy.deepcopy(self._config))
            evaluate = make_evaluate(trainer, self._records)
            self._made = trainer, Validation(trainer, evaluate, self._directory, metric=self._metric)
        trainer, validation = self._made
        prefix = list_checkpoints(self._directory).get(step)
        if prefix is None:
            raise FileNotFoundError(f"no checkpoint of step {step}")
        try:
            trainer.checkpoint.read(str(prefix)).assert_existing_objects_matched()
        except (tf.errors.NotFoundError, tf.errors.DataLossError) as error:
            raise FileNotFoundError(f"{prefix}: {error.message}") from error
        return validation.run(step, summaries)
