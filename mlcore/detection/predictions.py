"""The work of `predict` on a detector: read, detect, draw and write, so that no part waits for another."""

import dataclasses
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlcore.runtime.errors import DataError
from mlcore.runtime.progress import Progress

if TYPE_CHECKING:
    from mlcore.detection.metrics import Detections
    from mlcore.detection.pictures import Picture, Pixels

    Detect = Callable[[Sequence[bytes]], Sequence["Detections | DataError"]]

log = logging.getLogger(__name__)

PREDICTIONS = "predictions.json"
COCO_RESULTS = "coco_results.json"
PICTURES = "images"
_SHEET = 24  # pictures with boxes in report.html
_DRAWING_THREADS = 2  # Pillow lets go of the interpreter while it decodes, resizes and encodes
_NAMED_FAILURES = 3


@dataclass(frozen=True)
class ReadPicture:
    """A picture and its pixels, or why there are none."""

    index: int
    picture: "Picture"
    pixels: "Pixels | None"
    problem: str = ""


class Run:
    """Reads, detects and draws, so that the next pictures are read while the model works.

    Args:
        detect: Encoded pictures in, for each its detections out, or the error that stands in their place.
        classes: Id -> name.
        directory: Where the results are written.
        min_score: Lowest score of a box that is shown.
        max_detections: Most boxes of one picture.
        draw: Whether to write the pictures with boxes.
    """

    def __init__(
        self,
        detect: "Detect",
        classes: Mapping[int, str],
        directory: Path,
        *,
        min_score: float,
        max_detections: int,
        draw: bool,
    ) -> None:
        self.detect = detect
        self.classes = dict(classes)
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
            for batch in read_ahead(pool, pictures, batch_size):
                readable = [item for item in batch if item.pixels is not None]
                for item in batch:
                    if item.pixels is None:
                        log.warning("%s: %s", item.picture.path, item.problem)
                        self.unreadable.append(named(item.picture) | {"reason": item.problem})
                encoded = [item.pixels.encoded for item in readable if item.pixels is not None]
                detections = self.detect(encoded) if encoded else []
                for future in drawing:  # of the batch before: bounds what is held in memory
                    future.result()
                drawing = []
                for item, found in zip(readable, detections, strict=True):
                    if isinstance(found, DataError):
                        log.warning("%s: %s", item.picture.path, found)
                        self.unreadable.append(named(item.picture) | {"reason": str(found)})
                        continue
                    record, shown = self._record(item, found, ids[item.index])
                    if self.draw:
                        record["drawn"] = f"{PICTURES}/{names[item.index]}"
                        drawing.append(pool.submit(self._draw, item, shown, self.directory / record["drawn"]))
                    self.images.append(record)
                progress.update(len(batch))
            for future in drawing:
                future.result()

    def _record(self, item: ReadPicture, found: "Detections", image_id: int) -> tuple[dict[str, Any], "Detections"]:
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
        record = {"id": image_id, **named(item.picture), "width": width, "height": height, "detections": detections}
        return record, shown

    def _name(self, class_id: int) -> str:
        return self.classes.get(class_id, f"class {class_id}")

    def _draw(self, item: ReadPicture, shown: "Detections", path: Path) -> None:
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
        check_unreadable(self.unreadable, len(self.images), max_bad_fraction)

    def counts(self) -> dict[str, int]:
        """Pictures, unreadable ones and boxes that are shown."""
        return {
            "images": len(self.images),
            "unreadable": len(self.unreadable),
            "detections": sum(len(image["detections"]) for image in self.images),
        }

    def write(self, model: Mapping[str, Any], name: str, latency: Mapping[str, float] | None = None) -> None:
        """The JSON files and the report.

        Args:
            model: What predictions.json says of the model.
            name: The model in words.
            latency: Summary of the requests to a server.
        """
        predictions = {
            "model": dict(model),
            "min_score": self.min_score,
            "classes": {str(number): name for number, name in sorted(self.classes.items())},
            "images": self.images,
            "unreadable": self.unreadable,
        } | ({"latency": dict(latency)} if latency is not None else {})
        (self.directory / PREDICTIONS).write_text(json.dumps(predictions, indent=1) + "\n")
        (self.directory / COCO_RESULTS).write_text(json.dumps(self.coco) + "\n")
        self._report(name, latency)

    def _report(self, model: str, latency: Mapping[str, float] | None) -> None:
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
        if latency is not None:
            report.section("Latency").table(["", "ms"], latency_rows(latency), "Time of a request with one picture")
        if self.unreadable:
            report.section("Unreadable pictures")
            report.table(["file", "reason"], [[entry["file"], entry["reason"]] for entry in self.unreadable])
        report.write(self.directory / "report.html")


def named(picture: "Picture") -> dict[str, str]:
    """How results name a picture: as it was found in its folder, and where it is."""
    return {"file": picture.name, "path": str(picture.path)}


def check_again(output_dir: Path, max_bad_fraction: float) -> None:
    """`check_unreadable` of results that are there already.

    Raises:
        DataError: Too many pictures were unreadable, or the results cannot be read.
    """
    path = output_dir / PREDICTIONS
    try:
        content = json.loads(path.read_text())
        unreadable, readable = content["unreadable"], len(content["images"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); pass --overwrite=true to make it anew") from error
    check_unreadable(unreadable, readable, max_bad_fraction)


def check_unreadable(unreadable: Sequence[Mapping[str, str]], readable: int, max_bad_fraction: float) -> None:
    """Fails where too many pictures were unreadable.

    Raises:
        DataError: They were; the message names the first.
    """
    total = readable + len(unreadable)
    if len(unreadable) <= max_bad_fraction * total + 1e-6 and readable:
        return
    first = [f"{entry['file']} ({entry['reason']})" for entry in unreadable[:_NAMED_FAILURES]]
    more = len(unreadable) - len(first)
    raise DataError(
        f"{len(unreadable)} of {total} pictures cannot be read "
        f"(--max-bad-fraction={max_bad_fraction:g}): " + ", ".join(first) + (f" and {more} more" if more else "")
    )


def latency_rows(latency: Mapping[str, float]) -> list[tuple[str, float]]:
    """Rows of a table: p50_ms as p50."""
    return [(name.removesuffix("_ms"), value) for name, value in latency.items() if name.endswith("_ms")]


def read_ahead(pool: ThreadPoolExecutor, pictures: Sequence["Picture"], batch_size: int) -> Iterator[list[ReadPicture]]:
    """Batches of pictures; while one is worked on, the next is read."""

    def submit(start: int) -> list[Future[ReadPicture]]:
        return [
            pool.submit(_read, index, pictures[index]) for index in range(start, min(start + batch_size, len(pictures)))
        ]

    following = submit(0)
    for start in range(0, len(pictures), batch_size):
        current, following = following, submit(start + batch_size)
        yield [future.result() for future in current]


def _read(index: int, picture: "Picture") -> ReadPicture:
    from mlcore.detection.pictures import read_picture

    try:
        return ReadPicture(index, picture, read_picture(picture.path))
    except OSError as error:
        return ReadPicture(index, picture, None, str(error))


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
