"""COCO metrics of detections against ground truth, by pycocotools.

One evaluator for everything that wants these numbers: validation while training, `evaluate` from a checkpoint or from
an exported model, the test of a served model. It knows nothing of TensorFlow; callers hand it arrays.

No name of a metric is the prefix of another, because Katib's TensorFlowEvent collector takes a tag by its prefix:
COCO's AP is `coco_ap` beside `ap50`, and AR with 1, 10 and 100 detections is spelt out.
"""

import contextlib
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mlcore.runtime.errors import DataError
from mlcore.runtime.extras import require

if TYPE_CHECKING:
    FloatArray = npt.NDArray[np.floating[Any]]
    IntArray = npt.NDArray[np.integer[Any]]

MAX_DETECTIONS = 100  # an image and class, COCO's own limit
PER_CLASS = ("coco_ap", "ap50", "ap75", "ar_100_detections")
_AREAS = ("all", "small", "medium", "large")  # bounds 32**2 and 96**2 pixels of the original image
_LIMITS = (1, 10, MAX_DETECTIONS)


def _summary_names() -> dict[str, tuple[str, float | None, str, int]]:
    """Name of a metric -> (precision or recall, IoU or None for the mean of .50:.95, area, most detections)."""
    names: dict[str, tuple[str, float | None, str, int]] = {
        "coco_ap": ("precision", None, "all", MAX_DETECTIONS),
        "ap50": ("precision", 0.5, "all", MAX_DETECTIONS),
        "ap75": ("precision", 0.75, "all", MAX_DETECTIONS),
    }
    for area in _AREAS[1:]:
        names[f"ap_{area}"] = ("precision", None, area, MAX_DETECTIONS)
    for limit in _LIMITS:
        names[f"ar_{limit}_detection{'s' if limit > 1 else ''}"] = ("recall", None, "all", limit)
    for area in _AREAS[1:]:
        names[f"ar_{area}"] = ("recall", None, area, MAX_DETECTIONS)
    return names


SUMMARY = _summary_names()
MASK_PREFIX = "mask_"


@dataclass(frozen=True, kw_only=True)
class GroundTruth:
    """The objects of one image.

    Attributes:
        source_id: The image's own id, unique in the data set.
        height: Of the image, in pixels.
        width: Of the image, in pixels.
        boxes_yxyx: (n, 4) [ymin, xmin, ymax, xmax] in 0..1 of the image's size.
        classes: (n,) ids of the label map.
        is_crowd: (n,) objects that stand for a group; empty: none does.
        areas: (n,) pixels; empty: the area of the mask, or of the box where there is none.
        masks_png: n PNG files of the image's size, not zero where the object is; empty: no masks.
    """

    source_id: str
    height: int
    width: int
    boxes_yxyx: "FloatArray"
    classes: "IntArray"
    is_crowd: Sequence[bool] | npt.NDArray[Any] = ()
    areas: Sequence[float] | npt.NDArray[Any] = ()
    masks_png: Sequence[bytes] = ()


@dataclass(frozen=True, kw_only=True)
class Detections:
    """What a model found in one image, the best first.

    Attributes:
        boxes_yxyx: (n, 4) [ymin, xmin, ymax, xmax] in 0..1 of the image's size.
        scores: (n,) in 0..1.
        classes: (n,) ids of the label map.
        masks: (n, mask height, mask width) probabilities within each box, or None.
    """

    boxes_yxyx: "FloatArray"
    scores: "FloatArray"
    classes: "IntArray"
    masks: "FloatArray | None" = None


@dataclass(frozen=True)
class _Image:
    """An image as COCO's annotations: (height, width), objects and detections."""

    size: tuple[int, int]
    objects: list[dict[str, Any]]
    found: list[dict[str, Any]]


class CocoMetrics:
    """Gathers images and computes COCO's metrics over them.

    The result depends on the set of images, not on the order in which they were added.

    Args:
        classes: Id -> name, as in the label map.
        masks: Compute the metrics of the masks too.
    """

    def __init__(self, classes: Mapping[int, str], *, masks: bool = False) -> None:
        self.classes = dict(classes)
        self.masks = masks
        self._images: dict[str, _Image] = {}
        self._evaluated: dict[str, Any] = {}

    @property
    def images(self) -> int:
        """Number of images so far."""
        return len(self._images)

    def add(self, truth: GroundTruth, found: Detections) -> None:
        """Count one image.

        Raises:
            DataError: An image with this source_id was counted before, or an object has no mask though masks are
                evaluated.
        """
        if truth.source_id in self._images:
            raise DataError(f"two images have the source_id {truth.source_id}; expected a different one for each")
        if self.masks and len(truth.masks_png) != len(truth.classes):
            raise DataError(
                f"image {truth.source_id} has {len(truth.classes)} objects and {len(truth.masks_png)} masks; "
                "expected a mask for each (convert with --target=bodies)"
            )
        self._evaluated.clear()
        self._images[truth.source_id] = _Image(
            (truth.height, truth.width), self._objects(truth), self._found(truth, found)
        )

    def _objects(self, truth: GroundTruth) -> list[dict[str, Any]]:
        boxes = _xywh(truth.boxes_yxyx, truth)
        objects = []
        for index, (box, label) in enumerate(zip(boxes, truth.classes, strict=True)):
            annotation: dict[str, Any] = {
                "bbox": box.tolist(),
                "category_id": int(label),
                "iscrowd": int(truth.is_crowd[index]) if len(truth.is_crowd) else 0,
                "area": float(box[2] * box[3]),
            }
            if self.masks:
                annotation["segmentation"] = _encode(_read_mask(truth, index))
                annotation["area"] = float(_mask_api().area(annotation["segmentation"]))
            if len(truth.areas):
                annotation["area"] = float(truth.areas[index])
            objects.append(annotation)
        return objects

    def _found(self, truth: GroundTruth, found: Detections) -> list[dict[str, Any]]:
        boxes = _xywh(found.boxes_yxyx, truth)
        annotations = []
        for index, (box, label, score) in enumerate(zip(boxes, found.classes, found.scores, strict=True)):
            annotation: dict[str, Any] = {
                "bbox": box.tolist(),
                "category_id": int(label),
                "score": float(score),
                "area": float(box[2] * box[3]),
            }
            if self.masks:
                if found.masks is None:
                    raise ValueError("masks are to be evaluated, but the detections have none")
                annotation["segmentation"] = _encode(paste_mask(found.masks[index], box, truth.height, truth.width))
                annotation["mask_area"] = float(_mask_api().area(annotation["segmentation"]))
            annotations.append(annotation)
        return annotations

    def compute(self) -> dict[str, float]:
        """The metrics by name (`coco_ap`, `ap50`, ...; those of masks begin with `mask_`).

        NaN where there is nothing to measure, such as `ap_small` of a data set without small objects.
        """
        values = {name: self._mean(name, "bbox", None) for name in SUMMARY}
        if self.masks:
            values |= {MASK_PREFIX + name: self._mean(name, "segm", None) for name in SUMMARY}
        return values

    def compute_per_class(self) -> dict[str, dict[str, float]]:
        """Class -> metrics by name, and `objects`, the number that is there to be found."""
        table: dict[str, dict[str, float]] = {}
        counts = dict.fromkeys(self.classes, 0)
        for image in self._images.values():
            for annotation in image.objects:
                if not annotation["iscrowd"] and annotation["category_id"] in counts:
                    counts[annotation["category_id"]] += 1
        for label, name in sorted(self.classes.items()):
            row: dict[str, float] = {metric: self._mean(metric, "bbox", label) for metric in PER_CLASS}
            if self.masks:
                row |= {MASK_PREFIX + metric: self._mean(metric, "segm", label) for metric in PER_CLASS}
            table[name] = row | {"objects": counts[label]}
        return table

    def _mean(self, name: str, kind: str, label: int | None) -> float:
        """Mean of COCOeval's table over what a metric asks for; entries of -1 mean that nothing was there to find."""
        evaluator = self._evaluate(kind)
        if evaluator is None:
            return math.nan
        table, iou, area, limit = SUMMARY[name]
        values = evaluator.eval[table]  # (IoU, [recall,] class, area, most detections)
        values = values[..., _AREAS.index(area), _LIMITS.index(limit)]
        if label is not None:
            values = values[..., list(evaluator.params.catIds).index(label)]
        if iou is not None:
            values = values[int(np.argmin(np.abs(evaluator.params.iouThrs - iou)))]
        values = values[values > -1]
        return float(values.mean()) if values.size else math.nan

    def _evaluate(self, kind: str) -> Any:
        if kind not in self._evaluated:
            self._evaluated[kind] = self._run(kind) if self._images and self.classes else None
        return self._evaluated[kind]

    def _run(self, kind: str) -> Any:
        coco, cocoeval = require("pycocotools.coco", "detection"), require("pycocotools.cocoeval", "detection")
        truth, found = coco.COCO(), coco.COCO()
        truths: list[dict[str, Any]] = []
        founds: list[dict[str, Any]] = []
        images = []
        # Ids from 1: COCOeval takes 0 for "no match".
        for number, (_, image) in enumerate(sorted(self._images.items()), start=1):
            images.append({"id": number, "height": image.size[0], "width": image.size[1]})
            for annotation in image.objects:
                truths.append({**annotation, "image_id": number, "id": len(truths) + 1})
            for annotation in image.found:
                area = annotation["mask_area" if kind == "segm" else "area"]
                founds.append({**annotation, "area": area, "image_id": number, "id": len(founds) + 1})
        categories = [{"id": label, "name": name} for label, name in sorted(self.classes.items())]
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints; stdout is for results
            for index, annotations in ((truth, truths), (found, founds)):
                index.dataset = {"images": images, "categories": categories, "annotations": annotations}
                index.createIndex()
            evaluator = cocoeval.COCOeval(truth, found, iouType=kind)
            evaluator.evaluate()
            evaluator.accumulate()
        return evaluator


def format_table(
    summary: Mapping[str, float], per_class: Mapping[str, Mapping[str, float]], *, images: int | None = None
) -> str:
    """The metrics as a table for people: one line a class, then all of them."""
    masks = MASK_PREFIX + "coco_ap" in summary
    columns = [*PER_CLASS, *((MASK_PREFIX + name for name in PER_CLASS) if masks else ())]
    width = max([5, *map(len, per_class)])
    head = f"{'class':{width}}  {'objects':>7}  " + "  ".join(f"{name:>9}" for name in columns)
    lines = [head]
    total = 0
    for name, row in per_class.items():
        total += int(row["objects"])
        lines.append(f"{name:{width}}  {int(row['objects']):7d}  " + _cells(row, columns))
    lines.append(f"{'all':{width}}  {total:7d}  " + _cells(summary, columns))
    rest = [name for name in summary if name not in columns]
    for start in range(0, len(rest), 5):
        lines.append("  ".join(f"{name} {_cell(summary[name]).strip()}" for name in rest[start : start + 5]))
    if images is not None:
        lines.append(f"{images} images; coco_ap is the mean over IoU .50:.95")
    return "\n".join(lines)


def _cells(row: Mapping[str, float], columns: Sequence[str]) -> str:
    return "  ".join(f"{_cell(row[name]):>{max(9, len(name))}}" for name in columns)


def _cell(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"


def _xywh(boxes_yxyx: Any, truth: GroundTruth) -> npt.NDArray[np.float64]:
    """Boxes in 0..1 as COCO's [x, y, width, height] in pixels."""
    boxes = np.asarray(boxes_yxyx, np.float64).reshape(-1, 4)
    ymin, xmin, ymax, xmax = boxes.T
    columns = [xmin * truth.width, ymin * truth.height, (xmax - xmin) * truth.width, (ymax - ymin) * truth.height]
    return np.stack(columns, axis=1)


def paste_mask(mask: Any, box_xywh: Any, height: int, width: int) -> npt.NDArray[np.uint8]:
    """A mask that a model gave within its box, as 0 and 1 on the whole image.

    As Detectron does it: the mask gets a border of zeros before it is resized, so that resizing does not bleed at the
    edges, and the box grows in proportion.

    Args:
        mask: (mask height, mask width) probabilities.
        box_xywh: [x, y, width, height] in pixels.
        height: Of the image, in pixels.
        width: Of the image, in pixels.
    """
    canvas = np.zeros((height, width), np.uint8)
    padded = np.pad(np.asarray(mask, np.float32), 1)
    grow = max(padded.shape[0] / (padded.shape[0] - 2), padded.shape[1] / (padded.shape[1] - 2))
    x, y, box_width, box_height = (float(value) for value in box_xywh)
    left, right = (int(x + box_width / 2 * (1 + sign * grow)) for sign in (-1, 1))
    top, bottom = (int(y + box_height / 2 * (1 + sign * grow)) for sign in (-1, 1))
    down, across = (
        _linear(length, max(end - start + 1, 1))
        for length, start, end in ((padded.shape[0], top, bottom), (padded.shape[1], left, right))
    )
    x0, x1 = (min(max(edge, 0), width) for edge in (left, right + 1))
    y0, y1 = (min(max(edge, 0), height) for edge in (top, bottom + 1))
    if x0 < x1 and y0 < y1:
        rows, columns = down[y0 - top : y1 - top], across[x0 - left : x1 - left]
        canvas[y0:y1, x0:x1] = rows @ padded @ columns.T > 0.5
    return canvas


def _linear(length: int, wanted: int) -> npt.NDArray[np.float32]:
    """The matrix (wanted, length) that resizes a line by linear interpolation between the middles of its pixels."""
    places = np.clip((np.arange(wanted) + 0.5) * (length / wanted) - 0.5, 0, length - 1)
    low = np.minimum(places.astype(np.int64), max(length - 2, 0))
    weights = np.zeros((wanted, length), np.float32)
    share = (places - low).astype(np.float32)
    weights[np.arange(wanted), low] = 1 - share
    weights[np.arange(wanted), np.minimum(low + 1, length - 1)] += share
    return weights


def _read_mask(truth: GroundTruth, index: int) -> npt.NDArray[np.uint8]:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(truth.masks_png[index])) as picture:
            mask = (np.asarray(picture) > 0).astype(np.uint8)
    except (UnidentifiedImageError, OSError) as error:
        raise DataError(f"image {truth.source_id}: mask {index} is no PNG ({error})") from error
    if mask.shape != (truth.height, truth.width):
        raise DataError(
            f"image {truth.source_id}: mask {index} has the shape {mask.shape}, "
            f"expected that of the image, {(truth.height, truth.width)}"
        )
    return mask


def _mask_api() -> Any:
    return require("pycocotools.mask", "detection")


def _encode(mask: npt.NDArray[np.uint8]) -> Any:
    return _mask_api().encode(np.asfortranarray(mask))
