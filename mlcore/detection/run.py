"""A training run on one machine: from a model directory, records and settings to a finished model."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlcore.data.records import RecordSet
from mlcore.detection.metrics import MASK_PREFIX
from mlcore.detection.model_directory import ModelDirectory
from mlcore.detection.settings import Settings, blamed_on, configure, describe
from mlcore.detection.tensorflow import import_tensorflow
from mlcore.runtime.alone import alone_in
from mlcore.runtime.errors import UsageError

if TYPE_CHECKING:
    import tensorflow as tf
    import tf_keras
    from official.core.config_definitions import ExperimentConfig

    from mlcore.detection.loop import Outcome, Plan
    from mlcore.detection.trainer import Trainer
    from mlcore.detection.validation import Evaluate

log = logging.getLogger(__name__)

_EVAL_BATCH = 8


def run(
    directory: ModelDirectory,
    records: RecordSet,
    settings: Settings,
    *,
    metric: str,
    patience: int,
    seed: int,
    deterministic: bool | None,
    strategy_name: str,
) -> dict[str, Any]:
    """Train; the results that `_SUCCESS.json` records and `TrainResult` gives.

    Raises:
        UsageError, DataError, Stopped: See `mlcore.detection.train.train`.
    """
    tf = import_tensorflow()
    config = configure(settings, records)
    directory.open(describe(settings, config, records, seed), records.classes)
    deterministic = prepare_devices(tf, seed, deterministic)
    strategy = make_strategy(tf, strategy_name)

    from mlcore.detection.loop import TrainingLoop
    from mlcore.detection.runner import LocalRunner
    from mlcore.detection.validation import Validation

    with alone_in(directory.path):
        plan = make_plan(config, records, metric=metric, patience=patience)
        with blamed_on(settings):
            trainer = prepare_trainer(strategy, config, directory.path)
        trained = trainer.steps_done() >= plan.steps
        if trained and (before := directory.results()) is not None:
            log.info(
                "%s is up to date: trained to step %d, --steps=%d", directory.path, trainer.steps_done(), plan.steps
            )
            return before
        directory.begin()
        with blamed_on(settings):
            dataset = make_dataset(strategy, trainer, records, seed=seed, deterministic=deterministic)
        validation = None
        if plan.eval_interval:
            validation = Validation(trainer, make_evaluate(trainer, records), directory.path, metric=metric)
        loop = TrainingLoop(
            trainer,
            LocalRunner(trainer, strategy, dataset, deterministic=deterministic),
            plan,
            directory.path,
            validation=validation,
            first_step_done=log_first_step,
        )
        with strategy.scope():
            outcome = loop.evaluate_last() if trained else loop.run()
        results = results_of(outcome)
        directory.finish(results)
        log.info("trained to step %d: %s", outcome.step, directory.path)
        return results


def prepare_devices(tf: Any, seed: int, deterministic: bool | None) -> bool:
    """Seed TensorFlow, NumPy and Python; whether to compute the same each time (default: where there is no GPU)."""
    import tf_keras

    gpus = tf.config.list_physical_devices("GPU")
    for gpu in gpus:  # take memory as it is needed, not all of it at once
        tf.config.experimental.set_memory_growth(gpu, True)
    tf_keras.utils.set_random_seed(seed + 1)  # tf.data takes 0 for no seed
    return not gpus if deterministic is None else deterministic


def make_strategy(tf: Any, name: str) -> tf.distribute.Strategy:
    """The strategy for this machine: its default one for one device, MirroredStrategy for several.

    Raises:
        UsageError: `mirrored` with only one device.
    """
    gpus = tf.config.list_logical_devices("GPU")
    if name == "one_device" or (name == "auto" and len(gpus) < 2):
        return tf.distribute.get_strategy()
    devices = [device.name for device in gpus or tf.config.list_logical_devices("CPU")]
    if len(devices) < 2:
        raise UsageError("--strategy=mirrored: there is one device; expected several GPUs, or leave the flag out")
    log.info("training on %d devices: %s", len(devices), ", ".join(devices))
    # Without NCCL where it cannot be: between CPU devices.
    options = None if gpus else tf.distribute.ReductionToOneDevice()
    return tf.distribute.MirroredStrategy(devices, cross_device_ops=options)


def make_plan(config: ExperimentConfig, records: RecordSet, *, metric: str, patience: int) -> Plan:
    """What the loop does when, from the configuration."""
    from mlcore.detection.loop import Plan

    trainer = config.trainer
    if metric.startswith(MASK_PREFIX) and not getattr(config.task.model, "include_mask", False):
        raise UsageError(f"--metric={metric}: this model has no masks; expected a metric of boxes, such as coco_ap")
    eval_interval = trainer.validation_interval if "val" in records.by_split else 0
    if not eval_interval:
        log.info(
            "no evaluation while training: %s", "--eval-interval=0" if "val" in records.by_split else "no val split"
        )
    return Plan(
        steps=trainer.train_steps,
        summary_interval=trainer.summary_interval,
        checkpoint_interval=trainer.checkpoint_interval,
        eval_interval=eval_interval,
        metric=metric,
        patience=patience,
        shards=records.shards("train"),
    )


def prepare_trainer(strategy: tf.distribute.Strategy, config: ExperimentConfig, model_dir: Path) -> Trainer:
    """A trainer in the strategy's scope, with the weights of the newest good checkpoint, else of `init_checkpoint`."""
    trainer = make_trainer(strategy, config)
    load_weights(trainer, strategy, model_dir)
    return trainer


def load_weights(trainer: Trainer, strategy: tf.distribute.Strategy, model_dir: Path) -> None:
    """The weights of the newest good checkpoint, else of `init_checkpoint`."""
    with strategy.scope():
        if not trainer.resume(model_dir):
            trainer.initialize()


def make_trainer(strategy: tf.distribute.Strategy, config: ExperimentConfig) -> Trainer:
    """A trainer in the strategy's scope.

    Raises:
        UsageError: The batch cannot be shared equally.
    """
    from mlcore.detection.trainer import Trainer

    batch_size, replicas = config.task.train_data.global_batch_size, strategy.num_replicas_in_sync
    if batch_size % replicas:
        raise UsageError(f"--batch-size={batch_size}: expected a multiple of {replicas}, the number of devices")
    with strategy.scope():
        return Trainer(config, replicas=replicas)


def make_evaluate(trainer: Trainer, records: RecordSet) -> Evaluate:
    """A function that evaluates the trainer's model, as it is when called, on the val split."""
    from mlcore.detection.detectors import ModelDetector, evaluate_split
    from mlcore.detection.experiment import build_model, set_precision

    made: list[tuple[ModelDetector, tf_keras.Model]] = []

    def evaluate() -> Mapping[str, float]:
        if not made:  # late: tracing it need not delay the first step
            model, config = trainer.model, trainer.config
            if config.runtime.mixed_precision_dtype != "float32":
                set_precision(config)
                model = build_model(trainer.task)
            made.append((ModelDetector(model, config.task), model))
        detector, model = made[0]
        if model is not trainer.model:
            model.set_weights(trainer.model.get_weights())
        metrics = evaluate_split(detector, records.split("val"), records.classes, batch_size=_EVAL_BATCH, quiet=True)
        return metrics.compute()

    return evaluate


def make_dataset(
    strategy: tf.distribute.Strategy,
    trainer: Trainer,
    records: RecordSet,
    *,
    seed: int,
    deterministic: bool,
) -> Any:
    """The batches of each replica; of a strategy of several processes each reads records of its own."""
    from mlcore.detection.input import Pipeline, train_dataset

    batch_size = trainer.config.task.train_data.global_batch_size
    replicas = strategy.num_replicas_in_sync

    def make(context: Any = None) -> Any:
        pipeline = Pipeline() if context is None else Pipeline(context.input_pipeline_id, context.num_input_pipelines)
        return train_dataset(
            trainer.task,
            records.shards("train"),
            records=records.count("train"),
            batch_size=batch_size // replicas,
            seed=seed + pipeline.index,
            examples_done=trainer.steps_done() * batch_size // pipeline.count,
            deterministic=deterministic,
            pipeline=pipeline,
        )

    return make() if replicas == 1 else strategy.distribute_datasets_from_function(make)


def results_of(outcome: Outcome) -> dict[str, Any]:
    """The results of the step, from how training went."""
    nan = float("nan")
    return {
        "steps": outcome.step,
        "loss": outcome.loss,
        "steps_per_second": outcome.steps_per_second,
        "coco_ap": outcome.metrics.get("coco_ap", nan),
        "ap50": outcome.metrics.get("ap50", nan),
        "best_step": outcome.best.step if outcome.best else 0,
        "stopped_early": outcome.stopped_early,
    }


def log_first_step() -> None:
    """Say how long the start took."""
    log.info("first step done %.1f s after the start of the process", _process_age_s())


def _process_age_s() -> float:
    """Seconds since this process was started, with the imports before the first line of ours."""
    import os

    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    started = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started
