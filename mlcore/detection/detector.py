"""Who answers: a detector takes pictures and gives detections.

`predict` knows this interface alone, so that a model on disk and a model server are the same to it.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from mlcore.detection.metrics import Detections
from mlcore.runtime.errors import DataError, UsageError
from mlcore.runtime.extras import require
from mlcore.runtime.outputs import file_digest

if TYPE_CHECKING:
    import numpy.typing as npt

OUTPUTS = ("detection_boxes", "detection_scores", "detection_classes", "num_detections")
MASKS = "detection_masks"


class Detector(Protocol):
    """Finds objects in pictures."""

    def detect(self, images: "Sequence[npt.NDArray[np.uint8]]") -> list[Detections]:
        """The detections of each picture (RGB, uint8 of shape (height, width, 3); sizes may differ), in order."""
        ...


def find_saved_model(model: Path, flag: str = "--model") -> Path:
    """The directory of a SavedModel: the given one, or its subdirectory with the highest version.

    Raises:
        UsageError: There is none.
    """
    if not model.is_dir():
        raise UsageError(f"{flag}={model}: no such directory; expected the output directory of mlcore export")
    if (model / "saved_model.pb").is_file():
        return model
    versions = {
        int(entry.name): entry
        for entry in model.iterdir()
        if entry.name.isascii() and entry.name.isdigit() and (entry / "saved_model.pb").is_file()
    }
    if not versions:
        raise UsageError(
            f"{flag}={model}: holds no SavedModel; expected saved_model.pb or version directories such as {model}/1"
        )
    return versions[max(versions)]


def saved_model_digest(directory: Path) -> str:
    """SHA-256 over the graph and the variables of a SavedModel."""
    files = [directory / "saved_model.pb", *sorted((directory / "variables").glob("*"))]
    return hashlib.sha256("".join(file_digest(file) for file in files if file.is_file()).encode()).hexdigest()


class SavedModelDetector:
    """A detector that runs a SavedModel in this process; needs TensorFlow alone.

    Any model with the Object Detection API's outputs and normalised boxes is taken: `mlcore export` makes one, the
    TensorFlow model zoo has others.

    Args:
        directory: Directory with `saved_model.pb`.

    Raises:
        DataError: It cannot be loaded, or does not take images and give detections.
        UsageError: TensorFlow is not installed.
    """

    def __init__(self, directory: Path) -> None:
        os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")  # else TensorFlow looks for Keras 3, seconds for nothing
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        self._tf = require("tensorflow", extra="tf")
        self.directory = directory
        try:
            self._model = self._tf.saved_model.load(str(directory))  # owns the variables
        except Exception as error:
            line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise DataError(f"{directory}: cannot be loaded as a SavedModel: {line}") from error
        signature = self._model.signatures.get("serving_default")
        if signature is None:
            names = ", ".join(self._model.signatures) or "none"
            raise DataError(f"{directory}: has no signature serving_default (it has: {names})")
        missing = [name for name in OUTPUTS if name not in signature.structured_outputs]
        if missing:
            raise DataError(f"{directory}: serving_default has no output {missing[0]}; expected a detection model")
        inputs = signature.structured_input_signature[1]
        ((self._input, spec), *others) = inputs.items()
        if others or spec.dtype != self._tf.uint8 or spec.shape.rank != 4 or spec.shape[-1] != 3:
            raise DataError(
                f"{directory}: serving_default takes {spec}; expected uint8 pictures [batch, height, width, 3] alone"
            )
        self._signature = signature
        self._batch, *self._size = spec.shape[:3].as_list()

    def detect(self, images: "Sequence[npt.NDArray[np.uint8]]") -> list[Detections]:
        """The detections of each picture; those of one size go through the model together."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for index, image in enumerate(images):
            groups.setdefault(image.shape, []).append(index)
        found: dict[int, Detections] = {}
        for shape, indices in groups.items():
            if any(fixed not in (None, actual) for fixed, actual in zip(self._size, shape, strict=False)):
                raise DataError(f"{self.directory}: takes pictures of {self._size} pixels alone, got {list(shape[:2])}")
            step = self._batch or len(indices)
            for start in range(0, len(indices), step):
                part = indices[start : start + step]
                batch = np.stack([images[index] for index in part])
                if self._batch and len(part) < self._batch:  # it takes no fewer: fill it up
                    batch = np.concatenate([batch, np.repeat(batch[-1:], step - len(part), axis=0)])
                outputs = self._signature(**{self._input: self._tf.constant(batch)})
                arrays = {name: outputs[name].numpy() for name in (*OUTPUTS, MASKS) if name in outputs}
                for row, index in enumerate(part):
                    found[index] = detections_of(arrays, row)
        return [found[index] for index in range(len(images))]


def detections_of(outputs: Mapping[str, Any], row: int) -> Detections:
    """The detections of one picture among a batch of outputs, without the padding, best first."""
    count = int(outputs["num_detections"][row])
    scores = np.asarray(outputs["detection_scores"][row][:count], np.float32)
    order = np.argsort(-scores, kind="stable")
    order = order[np.isfinite(scores[order])]
    boxes = np.asarray(outputs["detection_boxes"][row][:count], np.float32).reshape(-1, 4)[order]
    classes = np.rint(np.asarray(outputs["detection_classes"][row][:count])).astype(np.int64)[order]
    masks = outputs.get(MASKS)
    if masks is not None:
        masks = np.asarray(masks[row][:count], np.float32)[order]
    return Detections(boxes_yxyx=np.clip(boxes, 0.0, 1.0), scores=scores[order], classes=classes, masks=masks)


def best_of(found: Detections, count: int, min_score: float = 0.0) -> Detections:
    """The first `count` of those that score at least `min_score`."""
    keep = np.flatnonzero(np.asarray(found.scores) >= min_score)[:count]
    masks = None if found.masks is None else found.masks[keep]
    return Detections(
        boxes_yxyx=found.boxes_yxyx[keep], scores=found.scores[keep], classes=found.classes[keep], masks=masks
    )
