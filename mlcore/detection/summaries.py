"""TensorBoard summaries of a model directory.

Training writes to `train/`, evaluation to `validation/`. Katib's TensorFlowEvent collector names a metric by this
directory and the tag (`validation/ap50`) and takes a tag by its prefix, so no tag may be the prefix of another.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mlcore.detection.tensorflow import import_tensorflow

TRAIN = "train"
VALIDATION = "validation"


class Summaries:
    """Writers of scalars; use it as a context manager.

    Args:
        model_dir: The model directory.
        step: Step that training starts from; later ones of an earlier run are hidden by TensorBoard.
    """

    def __init__(self, model_dir: Path, step: int) -> None:
        self._model_dir, self._step = model_dir, step
        self._writers: dict[str, Any] = {}

    def train(self, step: int, scalars: Mapping[str, float]) -> None:
        """Write the losses of training."""
        self._write(TRAIN, step, scalars)

    def validation(self, step: int, scalars: Mapping[str, float]) -> None:
        """Write the metrics of an evaluation."""
        self._write(VALIDATION, step, scalars)

    def _write(self, folder: str, step: int, scalars: Mapping[str, float]) -> None:
        tf = import_tensorflow()
        if folder not in self._writers:  # late: TensorBoard's packages need not delay the first step
            self._writers[folder] = tf.summary.create_file_writer(str(self._model_dir / folder))
        with self._writers[folder].as_default():
            for name, value in scalars.items():
                tf.summary.scalar(name, value, step=step)
        self._writers[folder].flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for writer in self._writers.values():
            writer.close()
