"""Evaluations during training: the metrics of the val split, and keeping the best checkpoint by one of them."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mlcore.detection.checkpoints import read_best, write_best
from mlcore.detection.summaries import Summaries
from mlcore.detection.trainer import Trainer
from mlcore.runtime.results import print_metrics

log = logging.getLogger(__name__)

_PRINTED = ("coco_ap", "ap50", "ap75", "ar_100_detections")  # the rest is in TensorBoard

Evaluate = Callable[[], Mapping[str, float]]


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
