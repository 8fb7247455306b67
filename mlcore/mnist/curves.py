"""Learning curves: kept in memory, in history.csv, and as TensorBoard event files that Katib reads.

    <model_dir>/history.csv       part,step,loss,accuracy
    <model_dir>/train/            loss, accuracy, learning_rate
    <model_dir>/validation/       loss, accuracy

Katib's TensorFlowEvent collector finds these as train/loss, validation/accuracy and so on. It takes every tag that
begins with the name it looks for, so no tag is the beginning of another.
"""

import csv
import io
import logging
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, get_args

from mlcore.mnist.tensorflow import tf
from mlcore.runtime.errors import DataError
from mlcore.runtime.outputs import atomic_file

log = logging.getLogger(__name__)

Part = Literal["train", "validation"]

HISTORY = "history.csv"
_COLUMNS = ("part", "step", "loss", "accuracy")


@dataclass(frozen=True)
class Point:
    """A point of both curves of a part of the data."""

    part: Part
    step: int
    loss: float
    accuracy: float


class Curves:
    """The learning curves of a training, from its first step.

    Args:
        model_dir: Where their files are.
        step: Step at which this process begins; later points, of a process that was killed, are forgotten.
    """

    def __init__(self, model_dir: Path, step: int) -> None:
        self._path = model_dir / HISTORY
        self.points = _points_until(self._path, step)
        self._writers = {part: tf.summary.create_file_writer(str(model_dir / part)) for part in get_args(Part)}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for writer in self._writers.values():
            writer.close()

    def add(self, point: Point, learning_rate: float | None = None) -> None:
        """Add a point to the curves and the event files."""
        self.points.append(point)
        with self._writers[point.part].as_default(step=point.step):
            tf.summary.scalar("loss", point.loss)
            tf.summary.scalar("accuracy", point.accuracy)
            if learning_rate is not None:
                tf.summary.scalar("learning_rate", learning_rate)

    def last(self, part: Part) -> Point | None:
        """The newest point of a part."""
        return next((point for point in reversed(self.points) if point.part == part), None)

    def flush(self) -> None:
        """Write what there is to the files; before a checkpoint is saved, so that none is ahead of them."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(_COLUMNS)
        writer.writerows((point.part, point.step, repr(point.loss), repr(point.accuracy)) for point in self.points)
        with atomic_file(self._path) as temporary:
            temporary.write_text(text.getvalue())
        for events in self._writers.values():
            events.flush()


def _points_until(path: Path, step: int) -> list[Point]:
    try:
        return [point for point in read_history(path) if point.step <= step]
    except DataError as error:
        log.warning("%s; the curves begin anew", error)  # no reason to give up the training
        return []


def read_history(path: Path) -> list[Point]:
    """The points of a history.csv; none where there is no such file.

    Raises:
        DataError: It is not such a file.
    """
    if not path.is_file():
        return []
    try:
        rows = list(csv.DictReader(path.read_text().splitlines()))
        return [Point(_part(row["part"]), int(row["step"]), float(row["loss"]), float(row["accuracy"])) for row in rows]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: expected the columns {', '.join(_COLUMNS)} ({error})") from error


def _part(text: str) -> Part:
    for part in get_args(Part):
        if part == text:
            return part
    raise ValueError(f"part {text}")
