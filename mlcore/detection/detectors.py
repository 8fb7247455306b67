"""A detector: encoded pictures in, detections out, whether its model is in memory or was exported.

Both run the same graph (`mlcore.detection.signatures`), decoding included, and take pictures of different sizes in one
batch. Validation while training, `evaluate`, `export` and `predict` see only the interface.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mlcore.data.records import RecordSplit
from mlcore.data.tfrecord import read_records
from mlcore.detection.metrics import CocoMetrics, Detections
from mlcore.detection.truth import read_truth
from mlcore.runtime.errors import DataError
from mlcore.runtime.extras import require
from mlcore.runtime.progress import Progress

IMAGE_BYTES = "image_bytes"
OUTPUTS = ("detection_boxes", "detection_scores", "detection_classes", "num_detections")
MASKS = "detection_masks"


class Detector(Protocol):
    """Finds objects in encoded pictures (JPEG, PNG, GIF, BMP).

    Attributes:
        has_masks: Whether detections have masks.
    """

    has_masks: bool

    def detect(self, images: Sequence[bytes]) -> list[Detections]:
        """The detections of each picture, in order."""


class ModelDetector:
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


class ExportedDetector:
    """An exported version directory; needs TensorFlow alone.

    A detector of another origin (such as the TensorFlow model zoo) that lacks the signature image_bytes is called
    through serving_default, one picture at a time.

    Args:
        directory: Directory with `saved_model.pb`.

    Raises:
        DataError: It holds no detector with the Object Detection API's outputs that TensorFlow can load.
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
        signatures = self._model.signatures
        name = next((name for name in (IMAGE_BYTES, "serving_default") if name in signatures), None)
        if name is None:
            raise DataError(f"{directory}: has no signature {IMAGE_BYTES} or serving_default; expected a detector")
        self._signature = signatures[name]
        missing = [output for output in OUTPUTS if output not in self._signature.structured_outputs]
        if missing:
            raise DataError(f"{directory}: {name} has no output {missing[0]}; expected a detection model")
        self.has_masks = MASKS in self._signature.structured_outputs
        ((self._input, spec),) = self._signature.structured_input_signature[1].items()
        self._takes_pixels = spec.dtype == tensorflow.uint8
        if not self._takes_pixels and spec.dtype != tensorflow.string:
            raise DataError(f"{directory}: {name} takes {spec.dtype.name}; expected uint8 pixels or encoded pictures")

    def detect(self, images: Sequence[bytes]) -> list[Detections]:
        if not self._takes_pixels:
            return _call(lambda encoded: self._signature(**{self._input: encoded}), images)
        return [found for image in images for found in _call(self._detect_pixels, [image])]

    def _detect_pixels(self, encoded: Any) -> Any:
        tensorflow = require("tensorflow", "tf")
        pixels = tensorflow.io.decode_image(encoded[0], channels=3, expand_animations=False)
        return self._signature(**{self._input: pixels[tensorflow.newaxis]})


def _call(function: Any, images: Sequence[bytes]) -> list[Detections]:
    tensorflow = require("tensorflow", "tf")
    outputs = function(tensorflow.constant(list(images), tensorflow.string, shape=[len(images)]))
    arrays = {name: np.asarray(outputs[name]) for name in (*OUTPUTS, MASKS) if name in outputs}
    return [detections_of(arrays, row) for row in range(len(images))]


def detections_of(outputs: Mapping[str, Any], row: int) -> Detections:
    """The detections of one picture among a batch of outputs, without the padding, best first."""
    count = int(outputs["num_detections"][row])
    scores = np.asarray(outputs["detection_scores"][row][:count], np.float32)
    order = np.argsort(-scores, kind="stable")
    order = order[np.isfinite(scores[order])]
    boxes = np.asarray(outputs["detection_boxes"][row][:count], np.float32).reshape(-1, 4)[order]
    masks = np.asarray(outputs[MASKS][row][:count], np.float32)[order] if MASKS in outputs else None
    return Detections(
        boxes_yxyx=np.clip(boxes, 0.0, 1.0),
        scores=scores[order],
        classes=np.rint(np.asarray(outputs["detection_classes"][row][:count])).astype(np.int64)[order],
        masks=masks,
    )


def evaluate_split(
    detector: Detector,
    split: RecordSplit,
    classes: Mapping[int, str],
    *,
    batch_size: int = 8,
    max_images: int | None = None,
    quiet: bool = False,
) -> CocoMetrics:
    """Run a model over a split of a record set and gather COCO's metrics over every image in it.

    Args:
        detector: The model.
        split: From `RecordSet.split`.
        classes: Id -> name.
        batch_size: Images a call.
        max_images: Only the first so many; None: all.
        quiet: Show no progress.

    Raises:
        DataError: A record is damaged, or the files hold another number of images than was written into them.
    """
    metrics = CocoMetrics(classes, masks=detector.has_masks)
    total = split.images if max_images is None else min(split.images, max_images)
    with Progress("evaluate", total=total, unit="images", quiet=quiet) as progress:
        for batch in _batches(split, batch_size, total):
            found = detector.detect([image for _, image in batch])
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
