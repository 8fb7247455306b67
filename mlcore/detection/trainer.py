"""What a training step is: one batch through a model, its losses, its gradients. How many of them run, where and when
is the business of a runner (`mlcore.detection.runner`, or one for a cluster) and of the loop (`mlcore.detection.loop`).
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlcore.cluster.tensorflow import reason_of
from mlcore.detection.checkpoints import PREFIX, fault_of, list_checkpoints, newest_good
from mlcore.detection.experiment import build_model, build_task, set_precision
from mlcore.detection.input import RECORD
from mlcore.detection.tensorflow import import_tensorflow
from mlcore.runtime.errors import DataError, UsageError

if TYPE_CHECKING:
    import tensorflow as tf
    from official.core.config_definitions import ExperimentConfig

log = logging.getLogger(__name__)

TOTAL_LOSS = "total_loss"


class _Kept:
    """Stands where a task's train_step expects a metric, and keeps the value of this step.

    A Keras metric would keep a running mean in variables, which another step has to read and reset.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.value: Any = None

    def update_state(self, value: Any) -> None:
        self.value = value

    def result(self) -> Any:
        return self.value


class Trainer:
    """A model with its optimizer and step counter. Make it in the strategy's scope.

    Args:
        config: The experiment.
        replicas: Copies of the model that train in step (`strategy.num_replicas_in_sync`).

    Attributes:
        task: The task of official.vision.
        model: Its model, built.
        optimizer: Its optimizer, with all its variables.
        global_step: Variable that counts the steps.
        checkpoint: tf.train.Checkpoint of all of it; the same keys as official's trainer, so that its tools read it.
        loss_names: What a step returns: `total_loss` and its parts.
    """

    def __init__(self, config: ExperimentConfig, *, replicas: int = 1) -> None:
        tf = import_tensorflow()
        set_precision(config, training=True)
        if replicas == 1:
            # One replica has nobody to synchronise batch statistics with; the plain layer has the same variables,
            # a third of the operations and fused kernels (steps/s times 1.5 on a CPU).
            config.task.model.norm_activation.use_sync_bn = False
        self.config = config
        self.task = build_task(config)
        self.model = build_model(self.task)
        self.optimizer = self.task.create_optimizer(config.trainer.optimizer_config, config.runtime)
        one_writer = tf.VariableAggregation.ONLY_FIRST_REPLICA
        self.global_step = tf.Variable(0, dtype=tf.int64, trainable=False, name="global_step", aggregation=one_writer)
        self._make_optimizer_variables()
        self.loss_names = tuple(metric.name for metric in self.task.build_metrics(training=True))
        self.checkpoint = tf.train.Checkpoint(
            global_step=self.global_step, model=self.model, optimizer=self.optimizer, **self.model.checkpoint_items
        )

    def _make_optimizer_variables(self) -> None:
        """Make the slots now: a step that makes variables has to be traced twice."""
        optimizer = getattr(self.optimizer, "inner_optimizer", self.optimizer)
        if hasattr(optimizer, "shadow_copy") and not optimizer.has_shadow_copy:  # the moving average of the weights
            optimizer.shadow_copy(self.model)
        if hasattr(optimizer, "_create_all_weights"):
            optimizer._create_all_weights(self.model.trainable_variables)
        elif hasattr(optimizer, "build"):
            optimizer.build(self.model.trainable_variables)

    def step(self, inputs: tuple[Any, dict[str, Any]]) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        """One step on one replica, inside `strategy.run`.

        Args:
            inputs: A batch of `input.train_dataset`.

        Returns:
            The losses by name (scalars), and the numbers of the batch's records.
        """
        images, labels = inputs
        labels = dict(labels)
        records = labels.pop(RECORD)
        losses = [_Kept(name) for name in self.loss_names]
        self.task.train_step((images, labels), model=self.model, optimizer=self.optimizer, metrics=losses)
        self.global_step.assign_add(1)
        return {loss.name: loss.value for loss in losses}, records

    def steps_done(self) -> int:
        """The step counter's value."""
        return int(self.global_step.numpy())

    def learning_rate(self) -> float:
        """The learning rate of the next step."""
        rate = self.optimizer.learning_rate
        return float(rate(self.global_step) if callable(rate) else rate)

    def weights_are_finite(self) -> bool:
        """Whether no weight is NaN or infinite; a checkpoint of others would be of no use."""
        tf = import_tensorflow()
        return all(bool(tf.reduce_all(tf.math.is_finite(variable))) for variable in self.model.trainable_variables)

    def initialize(self) -> None:
        """Load the configuration's `init_checkpoint`, if it has one.

        Raises:
            UsageError: It does not fit the model.
        """
        tf = import_tensorflow()
        prefix = self.config.task.init_checkpoint
        if not prefix:
            return
        if Path(prefix).is_dir():
            newest = newest_good(Path(prefix))
            prefix = str(newest[1]) if newest else tf.train.latest_checkpoint(prefix)
            if prefix is None:
                raise UsageError(f"--init-checkpoint={self.config.task.init_checkpoint}: holds no whole checkpoint")
            self.config.task.init_checkpoint = prefix
        try:
            self.task.initialize(self.model)
        except (tf.errors.OpError, AssertionError, ValueError, AttributeError, RuntimeError, IndexError) as error:
            modules = self.config.task.init_checkpoint_modules
            modules = modules if isinstance(modules, str) else ", ".join(modules)
            line = str(error.args[-1] if error.args else error).strip().splitlines()[0]
            expected = (
                "--init-modules=all wants the same classes and anchors too; leave it out to take backbone and decoder"
                if modules == "all"
                else "expected the same backbone and decoder"
            )
            raise UsageError(
                f"--init-checkpoint={prefix}: its {modules} does not fit this model; {expected} ({line[:200]})"
            ) from error
        log.info("weights from %s (%s)", prefix, self.config.task.init_checkpoint_modules)

    def resume(self, model_dir: Path) -> int:
        """Restore the newest checkpoint that is whole; the step it was saved at, 0 where there is none.

        A damaged one is renamed to `damaged-ckpt-<step>`, with a warning.
        """
        for step, prefix in reversed(list_checkpoints(model_dir).items()):
            fault = fault_of(prefix)
            if fault is None:
                fault = self._restore(prefix)
            if fault is None:
                log.info("resuming from %s", prefix)
                return step
            log.warning("%s is damaged (%s); falling back to the one before", prefix, fault)
            _set_aside(prefix)
        return 0

    def _restore(self, prefix: Path) -> str | None:
        tf = import_tensorflow()
        try:
            self.checkpoint.read(str(prefix)).assert_existing_objects_matched()
        except tf.errors.OpError as error:
            return reason_of(error)
        except (AssertionError, ValueError) as error:
            line = str(error).strip().splitlines()[0]
            raise DataError(f"{prefix}: is not of this model ({line[:200]})") from error
        return None


def _set_aside(prefix: Path) -> None:
    for file in (prefix.with_name(f"{prefix.name}.index"), *prefix.parent.glob(f"{prefix.name}.data-*")):
        if file.exists():
            file.rename(file.with_name(f"damaged-{file.name}"))


def checkpoint_manager(trainer: Trainer, model_dir: Path) -> Any:
    """tf.train.CheckpointManager over a model directory, which keeps the last `trainer.max_to_keep` checkpoints."""
    tf = import_tensorflow()
    # Its record of what is there (the file `checkpoint`) may be behind the files themselves after a kill.
    there = list(list_checkpoints(model_dir).values())
    record = model_dir / "checkpoint"
    if there:
        times = [prefix.with_name(f"{prefix.name}.index").stat().st_mtime for prefix in there]
        names = [prefix.name for prefix in there]
        tf.compat.v1.train.update_checkpoint_state(
            str(model_dir), names[-1], names, all_model_checkpoint_timestamps=times
        )
    else:
        record.unlink(missing_ok=True)
    keep = trainer.config.trainer.max_to_keep
    return tf.train.CheckpointManager(trainer.checkpoint, str(model_dir), max_to_keep=keep, checkpoint_name=PREFIX)
