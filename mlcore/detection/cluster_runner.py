"""Steps of detection on the workers of a cluster with parameter servers."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mlcore.cluster.coordinator import Coordinator
from mlcore.cluster.saving import trace_saving
from mlcore.data.records import RecordSet
from mlcore.detection.tensorflow import import_tensorflow
from mlcore.runtime.signals import StopFlag

if TYPE_CHECKING:
    from mlcore.detection.runner import Window
    from mlcore.detection.trainer import Trainer

log = logging.getLogger(__name__)


class ClusterRunner:
    """Runs steps on the workers of a cluster: each closure is one step, on whichever worker is free.

    Args:
        trainer: Made in the scope of the coordinator's strategy.
        coordinator: Schedules the steps.
        records: What to train on; each worker reads its own shards of it, in an order of its own.
        seed: Decides that order and the augmentation.
    """

    def __init__(self, trainer: Trainer, coordinator: Coordinator, records: RecordSet, seed: int) -> None:
        from mlcore.detection.input import Pipeline, train_dataset

        tf = import_tensorflow()
        self._trainer, self._coordinator = trainer, coordinator
        self._first_step = trainer.steps_done()
        batch_size = trainer.config.task.train_data.global_batch_size
        workers = len(coordinator.workers)

        def dataset(context: Any, generation: Any) -> Any:
            index = context.input_pipeline_id
            return train_dataset(
                trainer.task,
                records.shards("train"),
                records=records.count("train"),
                batch_size=batch_size,
                seed=seed + workers * generation + index,
                examples_done=self._first_step * batch_size // workers,
                deterministic=False,
                pipeline=Pipeline(index, workers),
            )

        self._iterator = coordinator.per_worker_iterator(dataset)
        strategy = coordinator.strategy

        def closure(iterator: Any, _first: Any, _count: Any) -> Any:
            return strategy.run(trainer.step, args=(next(iterator),))

        self._closure = tf.function(closure, autograph=False)

    def run(self, steps: int, stop: StopFlag) -> Window:
        """See `mlcore.detection.runner.StepRunner`."""
        from mlcore.detection.runner import summarize

        started = time.monotonic()
        results: list[tuple[Mapping[str, Any], Any]] = []
        self._coordinator.run(
            self._closure, [self._iterator], steps, stop=stop, on_result=lambda _, result: results.append(result)
        )
        window = summarize(self._first_step, results, started)
        self._first_step += window.steps
        if self._trainer.steps_done() != self._first_step:
            # A step whose worker was lost may have been counted, and was made again elsewhere.
            self._trainer.global_step.assign(self._first_step)
        log.debug("steps by worker: %s", dict(self._coordinator.steps_by_worker))
        return dataclasses.replace(window, stopped=stop.is_set())

    def agree(self, wish: bool) -> bool:
        """See `StepRunner`: the chief alone takes decisions."""
        return wish


def talk_less(trainer: Trainer) -> None:
    """What the chief asks the parameter servers between steps, as one call each: variables are far away."""
    tf = import_tensorflow()
    trace_saving(trainer.checkpoint)
    variables = trainer.model.trainable_variables
    all_finite = tf.function(
        lambda: tf.reduce_all([tf.reduce_all(tf.math.is_finite(variable)) for variable in variables]), autograph=False
    )
    trainer.weights_are_finite = lambda: bool(all_finite())  # type: ignore[method-assign]
