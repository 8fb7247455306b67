"""The step `predict`: pictures in, boxes out."""

import dataclasses
import json
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from mlcore.runtime.errors import DataError
from mlcore.runtime.outputs import OutputDirectory
from mlcore.runtime.parameters import Range, step
from mlcore.runtime.progress import Progress

if TYPE_CHECKING:
    from mlcore.detection.detectors import Detector
    from mlcore.detection.metrics import Detections
    from mlcore.detection.pictures import Picture, Pixels

log = logging.getLogger(__name__)

PREDICTIONS = "predictions.json"
COCO_RESULTS = "coco_results.json"
PICTURES = "images"
_SHEET = 24  # pictures with boxes in report.html
_DRAWING_THREADS = 2  # Pillow lets go of the interpreter while it decodes, resizes and encodes
_NAMED_FAILURES = 3


@dataclass(frozen=True)
class PredictResult:
    """What `predict` did.

    Attributes:
        images: Pictures that were read.
        unreadable: Pictures that were not.
        detections: Boxes with at least the score asked for.
        model: Directory of the SavedModel.
        output_dir: Where the results are.
    """

    images: int
    unreadable: int
    detections: int
    model: Path
    output_dir: Path


@step
def predict(
    *,
    model: Path,
    input: tuple[str, ...],
    output_dir: Path,
    min_score: Annotated[float, Range(min=0, max=1)] = 0.5,
    max_detections: Annotated[int, Range(min=1)] = 100,
    batch_size: Annotated[int, Range(min=1)] = 8,
    label_map: Path | None = None,
    draw: bool = True,
    max_bad_fraction: Annotated[float, Range(min=0, max=1)] = 0.5,
    overwrite: bool = False,
) -> PredictResult:
    """Find objects in pictures with an exported model; draw them and write them as JSON.

    The output directory holds `images/` (each picture with its boxes), `predictions.json` (for each picture the boxes
    in pixels with class and score), `coco_results.json` (all detections in COCO's results format, for its tools) and
    `report.html`. Any format that Pillow reads is taken, turned as its EXIF says.

    Args:
        model: Directory of an exported model, or its parent: then the highest version in it.
        input: A picture, a folder (searched at any depth) or a glob such as 'photos/*.jpg'.
        output_dir: Directory for the results.
        min_score: Lowest score of a box that is drawn and listed in predictions.json. coco_results.json has all of
            them, since average precision needs the low ones too.
        max_detections: Most boxes for one picture, the best first.
        batch_size: Pictures that go through the model at once.
        label_map: Names of the classes (.pbtxt). Default: the model's own.
        draw: Write the pictures with boxes.
        max_bad_fraction: Share of unreadable pictures above which the step fails. Below it they are listed in
            predictions.json and in the report.
        overwrite: Replace results that were made from something else.

    Raises:
        UsageError: The model or an input is not there, or there are no pictures.
        DataError: The model is not a detection model, or too many pictures are unreadable.
    """
    from mlcore.detection import pictures
    from mlcore.detection.detectors import ExportedDetector
    from mlcore.serving.version_directory import find_version, model_digest

    directory = find_version(model)
    found = pictures.find_pictures(input)
    classes = _read_classes(directory, label_map)
    output = OutputDirectory(
        output_dir,
        step="predict",
        parameters={"min_score": min_score, "max_detections": max_detections, "draw": draw, "classes": classes},
        inputs={"model": model_digest(directory), "pictures": pictures.pictures_digest(found)},
        overwrite=overwrite,
    )
    if (done := output.existing()) is not None:
        return PredictResult(**done["results"], model=directory, output_dir=output_dir)
    detector = ExportedDetector(directory)
    with output.writing() as staging:
        run = _Run(detector, classes, staging, min_score=min_score, max_detections=max_detections, draw=draw)
        run.over(found, batch_size)
        run.check(max_bad_fraction)
        run.write(directory)
        output.results = {
            "images": len(run.images),
            "unreadable": len(run.unreadable),
            "detections": sum(len(image["detections"]) for image in run.images),
        }
    return PredictResult(**output.results, model=directory, output_dir=output_dir)


def _read_classes(directory: Path, label_map: Path | None) -> dict[int, str]:
    """Names of the classes; empty, with a warning, where nobody knows them."""
    from mlcore.data.label_map import read_label_map
    from mlcore.serving.version_directory import LABEL_MAP

    own = directory / LABEL_MAP
    if label_map is None and not own.is_file():
        log.warning("%s has no label map: classes are shown as numbers; pass --label-map", directory)
        return {}
    return read_label_map(label_map or own)


@dataclass(frozen=True)
class _Read:
    """A picture and its pixels, or why there are none."""

    index: int
    picture: "Picture"
    pixels: "Pixels | None"
    problem: str = ""


class _Run:
    """Reads, detects and draws, so that the next pictures are read while the model works."""

    def __init__(
        self,
        detector: "Detector",
        classes: dict[int, str],
        directory: Path,
        *,
        min_score: float,
        max_detections: int,
        draw: bool,
    ) -> None:
        self.detector = detector
        self.classes = classes
        self.directory = directory
        self.min_score = min_score
        self.max_detections = max_detections
        self.draw = draw
        self.images: list[dict[str, Any]] = []
        self.unreadable: list[dict[str, str]] = []
        self.coco: list[dict[str, Any]] = []

    def over(self, pictures: Sequence["Picture"], batch_size: int) -> None:
        """Everything about every picture, in their order."""
        from mlcore.detection.pictures import drawn_names

        ids = _image_ids(pictures)
        names = drawn_names(pictures)
        drawing: list[Future[None]] = []
        with ThreadPoolExecutor(_DRAWING_THREADS) as pool, Progress("predict", len(pictures), "images") as progress:
            for batch in _read_ahead(pool, pictures, batch_size):
                readable = [item for item in batch if item.pixels is not None]
                for item in batch:
                    if item.pixels is None:
                        log.warning("%s: %s", item.picture.path, item.problem)
                        self.unreadable.append({"file": item.picture.name, "reason": item.problem})
                encoded = [item.pixels.encoded for item in readable if item.pixels is not None]
                detections = self.detector.detect(encoded) if encoded else []
                for future in drawing:  # of the batch before: bounds what is held in memory
                    future.result()
                drawing = []
                for item, found in zip(readable, detections, strict=True):
                    record, shown = self._record(item, found, ids[item.index])
                    if self.draw:
                        record["drawn"] = f"{PICTURES}/{names[item.index]}"
                        drawing.append(pool.submit(self._draw, item, shown, self.directory / record["drawn"]))
                    self.images.append(record)
                progress.update(len(batch))
            for future in drawing:
                future.result()

    def _record(self, item: _Read, found: "Detections", image_id: int) -> tuple[dict[str, Any], "Detections"]:
        """What predictions.json says of a picture, and the boxes that are shown; adds to the COCO results."""
        assert item.pixels is not None
        height, width = item.pixels.rgb.shape[:2]
        found = _best_of(found, self.max_detections)
        shown = _best_of(found, self.max_detections, self.min_score)
        self.coco += _coco_results(found, image_id, height, width)
        detections = [
            {
                "class_id": int(class_id),
                "class": self._name(int(class_id)),
                "score": round(float(score), 4),
                "box": [round(float(edge), 1) for edge in _xyxy(box, height, width)],
            }
            for box, score, class_id in zip(shown.boxes_yxyx, shown.scores, shown.classes, strict=True)
        ]
        record = {"id": image_id, "file": item.picture.name, "width": width, "height": height, "detections": detections}
        return record, shown

    def _name(self, class_id: int) -> str:
        return self.classes.get(class_id, f"class {class_id}")

    def _draw(self, item: _Read, shown: "Detections", path: Path) -> None:
        from PIL import Image

        from mlcore.detection.draw import DrawnBox, draw_boxes

        assert item.pixels is not None
        pixels = item.pixels.rgb
        boxes = []
        for index, (box, score, class_id) in enumerate(zip(shown.boxes_yxyx, shown.scores, shown.classes, strict=True)):
            xmin, ymin, xmax, ymax = _xyxy(box, *pixels.shape[:2])
            mask = (
                None
                if shown.masks is None
                else Image.fromarray((shown.masks[index] * 255).clip(0, 255).astype("uint8"))
            )
            boxes.append(
                DrawnBox(
                    xmin=xmin, ymin=ymin, xmax=xmax, ymax=ymax, mask=mask,
                    label=self._name(int(class_id)), class_id=int(class_id), score=float(score),
                )
            )  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        draw_boxes(Image.fromarray(pixels), boxes).save(path, quality=90)

    def check(self, max_bad_fraction: float) -> None:
        """Fails where too many pictures were unreadable.

        Raises:
            DataError: They were; the message names the first.
        """
        total = len(self.images) + len(self.unreadable)
        if len(self.unreadable) <= max_bad_fraction * total and self.images:
            return
        first = [f"{entry['file']} ({entry['reason']})" for entry in self.unreadable[:_NAMED_FAILURES]]
        more = len(self.unreadable) - len(first)
        raise DataError(
            f"{len(self.unreadable)} of {total} pictures cannot be read "
            f"(--max-bad-fraction={max_bad_fraction:g}): " + ", ".join(first) + (f" and {more} more" if more else "")
        )

    def write(self, model: Path) -> None:
        """The JSON files and the report."""
        predictions = {
            "model": {"directory": str(model), "version": int(model.name) if model.name.isdigit() else None},
            "min_score": self.min_score,
            "classes": {str(number): name for number, name in sorted(self.classes.items())},
            "images": self.images,
            "unreadable": self.unreadable,
        }
        (self.directory / PREDICTIONS).write_text(json.dumps(predictions, indent=1) + "\n")
        (self.directory / COCO_RESULTS).write_text(json.dumps(self.coco) + "\n")
        self._report(model)

    def _report(self, model: Path) -> None:
        from mlcore.data.report import Report

        detections = [entry for image in self.images for entry in image["detections"]]
        counts = {name: 0 for _, name in sorted(self.classes.items())}
        for entry in detections:
            counts[entry["class"]] = counts.get(entry["class"], 0) + 1
        report = Report("Predictions", f"By the model {model}. Boxes that score at least {self.min_score:g} are shown.")
        report.facts({"pictures": len(self.images), "boxes": len(detections), "unreadable": len(self.unreadable)})
        if self.draw:
            shown = self.images[:_SHEET]
            few = f"the first {len(shown)} of {len(self.images)}" if len(shown) < len(self.images) else "all"
            report.section("Pictures").images(
                f"Pictures with their boxes, {few}",
                [(self.directory / image["drawn"], f"{image['file']}: {_in_words(image)}") for image in shown],
            )
        report.section("Boxes").bars("Boxes by class", counts)
        report.histogram("Scores", [entry["score"] for entry in detections], bins=20, x_label="score")
        if self.unreadable:
            report.section("Unreadable pictures")
            report.table(["file", "reason"], [[entry["file"], entry["reason"]] for entry in self.unreadable])
        report.write(self.directory / "report.html")


def _read_ahead(pool: ThreadPoolExecutor, pictures: Sequence["Picture"], batch_size: int) -> Iterator[list[_Read]]:
    """Batches of pictures; while one is worked on, the next is read."""

    def submit(start: int) -> list[Future[_Read]]:
        return [
            pool.submit(_read, index, pictures[index]) for index in range(start, min(start + batch_size, len(pictures)))
        ]

    following = submit(0)
    for start in range(0, len(pictures), batch_size):
        current, following = following, submit(start + batch_size)
        yield [future.result() for future in current]


def _read(index: int, picture: "Picture") -> _Read:
    from mlcore.detection.pictures import read_picture

    try:
        return _Read(index, picture, read_picture(picture.path))
    except OSError as error:
        return _Read(index, picture, None, str(error))


def _best_of(found: "Detections", count: int, min_score: float = 0.0) -> "Detections":
    """The first `count` of those that score at least `min_score`."""
    import numpy as np

    keep = np.flatnonzero(np.asarray(found.scores) >= min_score)[:count]
    masks = None if found.masks is None else found.masks[keep]
    return dataclasses.replace(
        found, boxes_yxyx=found.boxes_yxyx[keep], scores=found.scores[keep], classes=found.classes[keep], masks=masks
    )


def _image_ids(pictures: Sequence["Picture"]) -> list[int]:
    """COCO's ids of images are numbers: the files' own where they are named by different numbers, else 1, 2, ..."""
    stems = [Path(picture.name).stem for picture in pictures]
    if all(stem.isascii() and stem.isdigit() for stem in stems) and len({int(stem) for stem in stems}) == len(stems):
        return [int(stem) for stem in stems]
    return list(range(1, len(pictures) + 1))


def _xyxy(box_yxyx: Sequence[float], height: int, width: int) -> tuple[float, float, float, float]:
    ymin, xmin, ymax, xmax = (float(edge) for edge in box_yxyx)
    return xmin * width, ymin * height, xmax * width, ymax * height


def _coco_results(found: "Detections", image_id: int, height: int, width: int) -> list[dict[str, Any]]:
    """COCO's results format: boxes as x, y, width, height in pixels, masks as compressed RLE."""
    results = []
    for index, (box, score, class_id) in enumerate(zip(found.boxes_yxyx, found.scores, found.classes, strict=True)):
        xmin, ymin, xmax, ymax = _xyxy(box, height, width)
        bbox = [round(value, 2) for value in (xmin, ymin, xmax - xmin, ymax - ymin)]
        entry = {"image_id": image_id, "category_id": int(class_id), "bbox": bbox, "score": round(float(score), 5)}
        if found.masks is not None:
            entry["segmentation"] = _run_lengths(found.masks[index], bbox, height, width)
        results.append(entry)
    return results


def _run_lengths(mask: Any, bbox: Sequence[float], height: int, width: int) -> dict[str, Any]:
    import numpy as np

    from mlcore.detection.metrics import paste_mask
    from mlcore.runtime.extras import require

    encoded = require("pycocotools.mask", "detection").encode(np.asfortranarray(paste_mask(mask, bbox, height, width)))
    return {"size": list(encoded["size"]), "counts": encoded["counts"].decode()}


def _in_words(image: dict[str, Any]) -> str:
    """`2 circle, 1 square`."""
    counts: dict[str, int] = {}
    for entry in image["detections"]:
        counts[entry["class"]] = counts.get(entry["class"], 0) + 1
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items())) or "no boxes"
