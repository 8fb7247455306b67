"""Checkpoints: saving the state of a training, and finding the newest one that can be read."""

import logging
import re
import shutil
from pathlib import Path

from mlcore.cluster.tensorflow import not_saved, reason_of
from mlcore.mnist.learner import Learner
from mlcore.mnist.tensorflow import tf
from mlcore.runtime.errors import DataError

log = logging.getLogger(__name__)

_NAME = "ckpt"


class Checkpoints:
    """The checkpoints of a training, `ckpt-<step>`, in its model directory.

    Args:
        learner: What is saved and restored.
        model_dir: Where.
        keep: How many of them stay.
    """

    def __init__(self, learner: Learner, model_dir: Path, keep: int = 3) -> None:
        self._learner = learner
        self._model_dir = model_dir
        self._checkpoint = learner.checkpoint()
        self._manager = tf.train.CheckpointManager(
            self._checkpoint, str(model_dir), max_to_keep=keep, checkpoint_name=_NAME
        )

    def steps(self) -> list[int]:
        """Steps of the checkpoints that are there, the newest first. Says nothing of whether they can be read."""
        found = (re.fullmatch(rf"{_NAME}-(\d+)\.index", path.name) for path in self._model_dir.glob(f"{_NAME}-*.index"))
        return sorted((int(match[1]) for match in found if match), reverse=True)

    def restore(self) -> int:
        """Restore the newest checkpoint that can be read; the step it was saved at, 0 where there is none.

        Raises:
            DataError: There are checkpoints, and none can be read.
        """
        self._remove_unfinished()
        steps = self.steps()
        reasons = []
        for step in steps:
            path = self._model_dir / f"{_NAME}-{step}"
            try:
                self._checkpoint.restore(str(path)).assert_consumed()
            except (tf.errors.OpError, ValueError, AssertionError, IndexError, RuntimeError) as error:
                # A file that is cut off is an IndexError to TensorFlow, tensors that do not fit are the others.
                reasons.append(f"{path.name}: {reason_of(error)}")
                log.warning("%s cannot be read (%s)", path, reasons[-1].partition(": ")[2])
                continue
            log.info("going on from %s", path)
            return step
        if reasons:
            raise DataError(
                f"{self._model_dir}: none of its checkpoints can be read ({reasons[0]}); "
                "pass --overwrite=true to begin anew"
            )
        return 0

    def save(self) -> None:
        """Save the state as it is.

        Raises:
            TransientError: The disk is full.
            UsageError: The model directory cannot be written. What was saved before stays in either case.
        """
        step = int(self._learner.step.numpy())
        try:
            self._manager.save(checkpoint_number=step)
        except tf.errors.OpError as error:
            shutil.rmtree(self._model_dir / f"{_NAME}-{step}_temp", ignore_errors=True)
            raise not_saved(self._model_dir, step, error) from error
        log.debug("saved %s-%d", _NAME, step)

    def _remove_unfinished(self) -> None:
        """What a process left that was killed while it saved."""
        for path in self._model_dir.glob(f"{_NAME}-*_temp*"):
            shutil.rmtree(path, ignore_errors=True)
