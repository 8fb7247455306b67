"""Detections for encoded pictures, from a model in memory or from an exported one.

Both run the same graph (`mlcore.detection.signatures`), decoding included, and take pictures of different sizes in one
batch. Validation while training, `evaluate` and `export` use them; pictures that a person shows us go through
`mlcore.detection.detector`.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mlcore.data.records import RecordSplit
from mlcore.data.tfrecord import read_records
from mlcore.detection.detector import MASKS, OUTPUTS, detections_of
from mlcore.detection.metrics import CocoMetrics, Detections
from mlcore.detection.truth import read_truth
from mlcore.runtime.errors import DataError
from mlcore.runtime.extras import require
from mlcore.runtime.progress import Progress

IMAGE_BYTES = "image_bytes"


class Inference(Protocol):
    """Finds objects in encoded pictures (JPEG, PNG, GIF, BMP).

    Attributes:
        has_masks: Whether detections have masks.
    """

    has_masks: bool

    def detect(self, images: Sequence[bytes]) -> list[Detections]:
        """The detections of each picture, in order."""


class ModelInference:
    """A model in memory. Traced at the first call; later calls see the weights as they are then.

    Args:
        model: RetinaNet or Mask R-CNN of official.vision, built.
        task_config: The task's section of its configuration (`config.task`).
    """

    def __init__(self, model: Any, task_config: Any) -> None:
        from mlcore.detection.signatures import serving_functions

        self.functions = serving_functions(model, task_config)
        self.has_masks = self.functions.has_masks

    def detect(self, images: Sequence[bytes]) -> list[Detections]:
        return _call(self.functions.image_bytes, images)


class ExportedInference:
    """An exported version directory, through its signature image_bytes; needs TensorFlow alone.

    Args:
        directory: Directory with `saved_model.pb`.

    Raises:
        DataError: It holds no detector with that signature that TensorFlow can load.
    """

    def __init__(self, directory: Path) -> None:
        os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        tensorflow = require("tensorflow", "tf")
        try:
            self._model = tensorflow.saved_model.load(str(directory))  # owns the variables
        except Exception as error:
            line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise DataError(f"{directory}: cannot be loaded as a SavedModel: {line}") from error
        if IMAGE_BYTES not in self._model.signatures:
            names = ", ".join(self._model.signatures) or "none"
            raise DataError(f"{directory}: has no signature {IMAGE_BYTES} (it has: {names}); expected a detector of "
                            "mlcore export")  # fmt: skip
        self._signature = self._model.signatures[IMAGE_BYTES]
        missing = [name for name in OUTPUTS if name not in self._signature.structured_outputs]
        if missing:
            raise DataError(f"{directory}: {IMAGE_BYTES} has no output {missing[0]}; expected a detection model")
        self.has_masks = MASKS in self._signature.structured_outputs

    def detect(self, images: Sequence[bytes]) -> list[Detections]:
        return _call(self._signature, images)


def _call(function: Any, images: Sequence[bytes]) -> list[Detections]:
    tensorflow = require("tensorflow", "tf")
    outputs = function(tensorflow.constant(list(images), tensorflow.string, shape=[len(images)]))
    arrays = {name: np.asarray(outputs[name]) for name in (*OUTPUTS, MASKS) if name in outputs}
    return [detections_of(arrays, row) for row in range(len(images))]


def evaluate_split(
    inference: Inference,
    split: RecordSplit,
    classes: Mapping[int, str],
    *,
    batch_size: int = 8,
    max_images: int | None = None,
    quiet: bool = False,
) -> CocoMetrics:
    """Run a model over a split of a record set and gather COCO's metrics over every image in it.

    Args:
        inference: The model.
        split: From `RecordSet.split`.
        classes: Id -> name.
        batch_size: Images a call.
        max_images: Only the first so many; None: all.
        quiet: Show no progress.

    Raises:
        DataError: A record is damaged, or the files hold another number of images than was written into them.
    """
    metrics = CocoMetrics(classes, masks=inference.has_masks)
    total = split.images if max_images is None else min(split.images, max_images)
    with Progress("evaluate", total=total, unit="images", quiet=quiet) as progress:
        for batch in _batches(split, batch_size, total):
            found = inference.detect([image for _, image in batch])
            for (truth, _), detections in zip(batch, found, strict=True):
                metrics.add(truth, detections)
            progress.update(len(batch))
    if metrics.images != total:
        raise DataError(f"{split.shards[0].parent}: {metrics.images} images in {split.name}, expected {total}")
    return metrics


def _batches(split: RecordSplit, size: int, total: int) -> Iterator[list[Any]]:
    batch: list[Any] = []
    left = total
    for shard in split.shards:
        for record in read_records(shard):
            if not left:
                break
            left -= 1
            batch.append(read_truth(record))
            if len(batch) == size or not left:
                yield batch
                batch = []
    if batch:
        yield batch
