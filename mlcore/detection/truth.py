"""The truth in a record: what is to be found in its image. Needs no TensorFlow."""

from typing import Any

import numpy as np

from mlcore.data import example
from mlcore.detection.metrics import GroundTruth
from mlcore.runtime.errors import DataError

_SIDES = ("ymin", "xmin", "ymax", "xmax")


def read_truth(record: bytes) -> tuple[GroundTruth, bytes]:
    """The objects of a serialised tf.train.Example, and its encoded image.

    Raises:
        DataError: The record is no tf.train.Example, or lacks something that is needed; the message names its
            source_id and the key.
    """
    try:
        features: dict[str, list[Any]] = example.decode(record)
    except Exception as error:  # protobuf's DecodeError has no base of its own in all its implementations
        raise DataError(f"a record is no tf.train.Example ({error})") from error
    ids = features.get("image/source_id") or [b""]
    source_id = ids[0].decode(errors="replace")
    for name in ("image/encoded", "image/height", "image/width", "image/source_id"):
        if not features.get(name):
            raise DataError(f"the record {source_id or '?'} has no {name}; expected records of mlcore convert")
    sides = [features.get(f"image/object/bbox/{side}", []) for side in _SIDES]
    labels = features.get("image/object/class/label", [])
    if {len(side) for side in sides} != {len(labels)}:
        raise DataError(f"the record {source_id} has {len(labels)} labels and {[len(side) for side in sides]} sides")
    truth = GroundTruth(
        source_id=source_id,
        height=int(features["image/height"][0]),
        width=int(features["image/width"][0]),
        boxes_yxyx=np.array(sides, np.float64).T.reshape(-1, 4),
        classes=np.array(labels, np.int64),
        is_crowd=_of_each(features, "is_crowd", source_id, len(labels)),
        areas=_of_each(features, "area", source_id, len(labels)),
        masks_png=_of_each(features, "mask", source_id, len(labels)),
    )
    return truth, features["image/encoded"][0]


def _of_each(features: dict[str, list[Any]], name: str, source_id: str, count: int) -> list[Any]:
    """A value of each object; none where the record does not have them."""
    values = features.get(f"image/object/{name}", [])
    if values and len(values) != count:
        raise DataError(f"the record {source_id} has {len(values)} of image/object/{name} for {count} objects")
    return values
