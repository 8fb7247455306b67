"""A training run on a cluster with parameter servers: what the chief and the evaluator do.

The model directory, the loop, the trainer and what a step is are those of one machine, so that a run that began here
can go on there. What differs: the steps run as closures on the workers, each of which reads records of its own, and
the checkpoints are evaluated by the evaluator while training goes on, or by the chief in the end where there is none.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlcore.cluster.chief import Chief, lead
from mlcore.cluster.config import Cluster
from mlcore.cluster.coordinator import Coordinator
from mlcore.cluster.evaluation import Evaluation, evaluate_continuously, read_evaluation
from mlcore.cluster.saving import trace_saving
from mlcore.cluster.timeouts import Timeouts
from mlcore.data.records import RecordSet
from mlcore.detection.checkpoints import list_checkpoints, read_best
from mlcore.detection.model_directory import ModelDirectory
from mlcore.detection.settings import Settings, configure, describe
from mlcore.detection.tensorflow import import_tensorflow
from mlcore.runtime.signals import StopFlag, stop_flag

if TYPE_CHECKING:
    from official.core.config_definitions import ExperimentConfig

    from mlcore.detection.loop import Plan
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
        return window


class CheckpointEvaluator:
    """Evaluates checkpoints of a model directory on the val split, and keeps the best; made late, as it takes seconds.

    Args:
        directory: Model directory.
        config: The experiment.
        records: With a val split.
        metric: Metric by which a checkpoint is the best.
    """

    def __init__(self, directory: Path, config: ExperimentConfig, records: RecordSet, *, metric: str) -> None:
        from mlcore.detection.run import make_evaluate
        from mlcore.detection.summaries import Summaries
        from mlcore.detection.trainer import Trainer
        from mlcore.detection.validation import Validation

        self._directory = directory
        self._trainer = Trainer(config)
        self._validation = Validation(self._trainer, make_evaluate(self._trainer, records), directory, metric=metric)
        self._summaries = Summaries(directory, 0)

    def evaluate(self, step: int) -> Mapping[str, float]:
        """Metrics of the checkpoint of a step.

        Raises:
            FileNotFoundError: It is not there (any more).
        """
        tf = import_tensorflow()
        prefix = list_checkpoints(self._directory).get(step)
        if prefix is None:
            raise FileNotFoundError(f"no checkpoint of step {step}")
        try:
            self._trainer.checkpoint.read(str(prefix)).assert_existing_objects_matched()
        except (tf.errors.NotFoundError, tf.errors.DataLossError) as error:
            raise FileNotFoundError(f"{prefix}: {error.message}") from error
        return self._validation.run(step, self._summaries)


def lead_run(
    cluster: Cluster,
    directory: ModelDirectory,
    records: RecordSet,
    settings: Settings,
    *,
    goal: str,
    metric: str,
    patience: int,
    seed: int,
    timeouts: Timeouts,
) -> dict[str, Any]:
    """The chief's part: train on the workers; the results that `_SUCCESS.json` records.

    Raises:
        UsageError, DataError, Stopped: See `mlcore.detection.train.train`.
        RestartError: A member of the cluster is lost; to be started again.
    """
    with lead(cluster, directory.path, goal=goal, timeouts=timeouts) as chief:
        results = directory.finished()
        if results is None:
            results = _lead(chief, directory, records, settings, metric=metric, patience=patience, seed=seed)
        chief.begin()
    return results


def _lead(
    chief: Chief,
    directory: ModelDirectory,
    records: RecordSet,
    settings: Settings,
    *,
    metric: str,
    patience: int,
    seed: int,
) -> dict[str, Any]:
    from mlcore.detection.run import log_first_step, make_plan, prepare_trainer, results_of, seed_everything

    tf = import_tensorflow()
    config = configure(settings, records)
    directory.open(describe(settings, config, records, seed), records.classes)
    chief.begin()
    seed_everything(tf, seed, deterministic=False)
    plan = make_plan(config, records, metric=metric, patience=patience)
    has_evaluator = bool(chief.cluster.of("evaluator")) and plan.eval_interval > 0
    if patience and not has_evaluator:
        log.warning("--patience=%d: without an evaluator the chief evaluates in the end only", patience)
    outcome = _already_done(directory, plan)
    if outcome is None:
        from mlcore.detection.loop import TrainingLoop

        coordinator = chief.connect()
        trainer = prepare_trainer(coordinator.strategy, config, directory.path)
        _talk_less(trainer)
        directory.begin()
        # Checkpoints are what the evaluator evaluates.
        every = [interval for interval in (plan.checkpoint_interval, plan.eval_interval) if interval]
        loop = TrainingLoop(
            trainer,
            ClusterRunner(trainer, coordinator, records, seed),
            dataclasses.replace(plan, checkpoint_interval=min(every)),
            directory.path,
            first_step_done=log_first_step,
            stop_early=lambda _: has_evaluator and _out_of_patience(directory.path, plan),
        )
        with coordinator.strategy.scope():
            outcome = loop.run()
        log.info("steps by worker: %s", dict(coordinator.steps_by_worker))
    chief.disconnect()
    if plan.eval_interval:
        evaluation = chief.wait_for_evaluation(outcome.step) if has_evaluator else None
        if evaluation is None:
            with tf.device("/job:chief/task:0/device:CPU:0" if chief.coordinator else None):
                evaluator = CheckpointEvaluator(directory.path, config, records, metric=metric)
                evaluation = Evaluation(outcome.step, evaluator.evaluate(outcome.step))
        outcome.metrics, outcome.best = evaluation.metrics, read_best(directory.path)
    results = results_of(outcome)
    directory.finish(results)
    log.info("trained to step %d: %s", outcome.step, directory.path)
    return results


def _talk_less(trainer: Trainer) -> None:
    """What the chief asks the parameter servers between steps, as one call each: variables are far away."""
    tf = import_tensorflow()
    trace_saving(trainer.checkpoint)
    variables = trainer.model.trainable_variables
    all_finite = tf.function(
        lambda: tf.reduce_all([tf.reduce_all(tf.math.is_finite(variable)) for variable in variables]), autograph=False
    )
    trainer.weights_are_finite = lambda: bool(all_finite())  # type: ignore[method-assign]


def _already_done(directory: ModelDirectory, plan: Plan) -> Any:
    """The outcome of a run that only lacks its last words, so that no cluster need be waited for."""
    from mlcore.detection.checkpoints import newest_good
    from mlcore.detection.loop import Outcome

    newest = newest_good(directory.path)
    if newest is None or newest[0] < plan.steps:
        return None
    log.info("%s is trained to step %d, --steps=%d", directory.path, newest[0], plan.steps)
    results = directory.results() or {}
    nan = float("nan")
    return Outcome(
        step=newest[0], loss=results.get("loss", nan), steps_per_second=results.get("steps_per_second", nan),
        best=read_best(directory.path),
    )  # fmt: skip


def _out_of_patience(model_dir: Path, plan: Plan) -> bool:
    """Whether the evaluator has seen no better checkpoint for too long."""
    evaluation, best = read_evaluation(model_dir), read_best(model_dir)
    if evaluation is None or best is None or not plan.out_of_patience(evaluation.step, best):
        return False
    log.info("no better %s since step %d; stopping early", plan.metric, best.step)
    return True


def evaluate_run(
    cluster: Cluster,
    model_dir: Path,
    records: RecordSet,
    settings: Settings,
    *,
    goal: str,
    metric: str,
    timeouts: Timeouts,
) -> None:
    """The evaluator's part: evaluate each new checkpoint until the chief is done.

    Raises:
        RestartError: The chief is gone.
        Stopped: After SIGTERM or Ctrl-C.
    """
    evaluator: list[CheckpointEvaluator] = []
    has_work = "val" in records.by_split and settings.eval_interval != 0

    def newest() -> int | None:
        return max(list_checkpoints(model_dir), default=None) if has_work else None

    def evaluate(step: int) -> Mapping[str, float]:
        if not evaluator:
            import_tensorflow()
            evaluator.append(CheckpointEvaluator(model_dir, configure(settings, records), records, metric=metric))
        return evaluator[0].evaluate(step)

    with stop_flag() as stop:
        evaluate_continuously(
            cluster, model_dir, goal=goal, newest=newest, evaluate=evaluate, stop=stop, timeouts=timeouts
        )
