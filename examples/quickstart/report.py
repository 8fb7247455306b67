"""The report of the quickstart: the data, the training and what the model sees, on one page."""

import contextlib
import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from PIL import Image

from mlcore.data.label_map import read_label_map
from mlcore.data.report import Report
from mlcore.data.tfrecord import read_records
from mlcore.detection.draw import DrawnBox, draw_boxes
from mlcore.runtime.errors import DataError

TRAINING_PICTURES = 12
HELD_OUT_PICTURES = 12


@dataclass(frozen=True)
class Places:
    """Where the steps have put what they made.

    Attributes:
        raw: Folder with JPEGImages, Annotations and ImageSets.
        records: Output directory of `convert`.
        model: Directory of `train`.
        export: Base directory of `export`.
        predictions: Output directory of `predict`.
    """

    raw: Path
    records: Path
    model: Path
    export: Path
    predictions: Path


def write_report(
    path: Path, places: Places, *, facts: Mapping[str, Any], metrics: Mapping[str, str], seconds: Mapping[str, float]
) -> None:
    """Writes the page.

    Args:
        path: The file.
        places: Where to read.
        facts: What stands on top.
        metrics: Results of `evaluate`.
        seconds: Step -> seconds.
    """
    ids = {name: number for number, name in read_label_map(places.records / "label_map.pbtxt").items()}
    splits = {split: listed(places.raw, split) for split in ("train", "val", "test")}
    truth = {name: read_truth(places.raw, name, ids) for names in splits.values() for name in names}
    report = Report(
        "Quickstart",
        "Circles, squares and triangles were drawn, packed, downloaded, extracted and converted; a RetinaNet was "
        "trained on them from scratch, measured on pictures that it has not seen, exported, and used to find the "
        "shapes again.",
    )
    report.facts(facts)
    _add_data(report, places, splits, truth)
    losses, validation = read_scalars(places.model)
    report.section("Training").lines("Loss", losses, x_label="step", y_label="loss")
    if validation:
        report.lines("On the validation pictures, while training", validation, x_label="step")
    named = {"coco_ap": "AP (mean over IoU .50 to .95)", "ap50": "AP50", "ap75": "AP75", "ar_100_detections": "AR"}
    rows = [(text, float(metrics[name])) for name, text in named.items() if name in metrics]
    report.section("On held-out pictures").table(["metric", "value"], rows, caption=f"{len(splits['test'])} pictures")
    pairs = beside_truth(places, truth, ids, splits["test"])
    report.images("The truth on the left, what the model found on the right", pairs, width=440)
    steps = [(step, f"{taken:.1f}") for step, taken in seconds.items()]
    report.section("Seconds").table(["step", "seconds"], [*steps, ("in all", f"{sum(seconds.values()):.1f}")])
    report.write(path)


def _add_data(
    report: Report, places: Places, splits: Mapping[str, Sequence[str]], truth: Mapping[str, Sequence[DrawnBox]]
) -> None:
    counts: dict[str, int] = {}
    for boxes in truth.values():
        for box in boxes:
            counts[box.label] = counts.get(box.label, 0) + 1
    report.section("Data").bars("Boxes by class", dict(sorted(counts.items())))
    rows = [(split, len(names), sum(len(truth[name]) for name in names)) for split, names in splits.items()]
    report.table(["split", "pictures", "boxes"], rows)
    sides = [((box.xmax - box.xmin) * (box.ymax - box.ymin)) ** 0.5 for boxes in truth.values() for box in boxes]
    report.histogram("Size of the boxes", sides, x_label="square root of the area, pixels")
    sheet = [
        (draw_boxes(_picture(places.raw, name), truth[name]), name) for name in splits["train"][:TRAINING_PICTURES]
    ]
    report.images("Training pictures with their boxes", sheet, width=240)


def listed(raw: Path, split: str) -> list[str]:
    """Names of the pictures of a split."""
    return (raw / "ImageSets" / "Main" / f"{split}.txt").read_text().split()


def read_truth(raw: Path, name: str, ids: Mapping[str, int]) -> list[DrawnBox]:
    """The boxes of a picture's annotation, in pixels from 0."""
    boxes = []
    for element in ElementTree.parse(raw / "Annotations" / f"{name}.xml").getroot().iter("object"):
        label = element.findtext("name", "")
        left, upper, right, lower = (
            float(element.findtext(f"bndbox/{tag}", "0")) for tag in ("xmin", "ymin", "xmax", "ymax")
        )
        boxes.append(
            DrawnBox(xmin=left - 1, ymin=upper - 1, xmax=right, ymax=lower, label=label, class_id=ids.get(label, 0))
        )
    return boxes


def beside_truth(
    places: Places, truth: Mapping[str, Sequence[DrawnBox]], ids: Mapping[str, int], names: Sequence[str]
) -> Iterator[tuple[Image.Image, str]]:
    """Held-out pictures, each twice: with its annotated boxes and with those that the model found."""
    predictions = json.loads((places.predictions / "predictions.json").read_text())
    by_name = {Path(image["file"]).stem: image for image in predictions["images"]}
    for name in [name for name in names if truth[name]][:HELD_OUT_PICTURES]:
        picture = _picture(places.raw, name)
        known = draw_boxes(picture, truth[name])
        found = draw_boxes(picture, found_boxes(by_name[name]))
        both = Image.new("RGB", (2 * known.width + 8, known.height), "white")
        both.paste(known, (0, 0))
        both.paste(found, (known.width + 8, 0))
        yield both, f"{name}: {len(truth[name])} there, {len(by_name[name]['detections'])} found"


def found_boxes(image: Mapping[str, Any]) -> list[DrawnBox]:
    """The detections of one picture of predictions.json."""
    boxes = []
    for found in image["detections"]:
        xmin, ymin, xmax, ymax = found["box"]
        boxes.append(
            DrawnBox(
                xmin=xmin, ymin=ymin, xmax=xmax, ymax=ymax,
                label=found["class"], class_id=found["class_id"], score=found["score"],
            )
        )  # fmt: skip
    return boxes


def _picture(raw: Path, name: str) -> Image.Image:
    with Image.open(raw / "JPEGImages" / f"{name}.jpg") as image:
        image.load()
        return image


Series = dict[str, list[tuple[float, float]]]


def read_scalars(model: Path) -> tuple[Series, Series]:
    """The losses of training, and AP on the validation split, from TensorBoard's event files."""
    from tensorboard.compat.proto.event_pb2 import Event

    found: dict[str, dict[str, dict[int, float]]] = {"train": {}, "validation": {}}
    for folder, tags in found.items():
        for file in sorted((model / folder).glob("events.out.tfevents.*")):
            with contextlib.suppress(DataError):  # the last record of a run that was killed
                for record in read_records(file):
                    event = Event.FromString(record)
                    for value in event.summary.value:
                        if (number := _scalar(value)) is not None:
                            tags.setdefault(value.tag, {})[event.step] = number

    def chosen(folder: str, names: Mapping[str, str]) -> Series:
        tags = found[folder]
        return {
            text: [(float(step), y) for step, y in sorted(tags[tag].items())]
            for tag, text in names.items()
            if tag in tags
        }

    losses = {"total_loss": "total", "cls_loss": "class"}
    return chosen("train", losses), chosen("validation", {"coco_ap": "AP", "ap50": "AP50"})


def _scalar(value: Any) -> float | None:
    if value.HasField("simple_value"):
        return float(value.simple_value)
    if not value.HasField("tensor") or value.tensor.dtype != 1 or value.tensor.tensor_shape.dim:
        return None
    if value.tensor.float_val:
        return float(value.tensor.float_val[0])
    return float(struct.unpack("<f", value.tensor.tensor_content)[0])
