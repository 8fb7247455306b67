"""The report of a conversion: what is in the records, how it looks, and what was wrong with the data."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlcore.data.example import decode
from mlcore.data.irregularities import ACCEPTED, ACTIONS, RULES, Irregularity, sorted_by_weight
from mlcore.data.plan import ShardResult
from mlcore.data.records import REPORT
from mlcore.data.report import Report
from mlcore.data.sources import Source
from mlcore.data.tfrecord import read_records

if TYPE_CHECKING:
    from PIL import Image

_PICTURES = 12
_PICTURE_WIDTH = 250  # half of a common width: decoded at half size, no more work
_LINE = 2
_COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#800000")


def write_report(
    directory: Path,
    source: Source,
    *,
    summary: Mapping[str, Any],
    results: Sequence[ShardResult],
    found: Sequence[Irregularity],
) -> None:
    """Write `report.html` for the records in `directory`, beside them."""
    report = Report(
        "Conversion",
        f"The data set {source.root.name} ({source.layout}) as TFRecords: what is in them, and what was wrong.",
    )
    report.facts(
        {
            "images": summary["images"],
            "boxes": summary["boxes"],
            "boxes dropped": summary["boxes_dropped"],
            "images rejected": summary["rejected"],
            "left out": summary["left_out"],
            "classes": len(summary["classes"]),
        }
    )
    splits = summary["splits"]
    report.section("Splits").table(
        ("split", "images", "without boxes", "boxes", "files"),
        [
            (name, entry["images"], entry["negatives"], entry["boxes"], len(entry["shards"]))
            for name, entry in splits.items()
        ],
    )
    classes = list(summary["classes"].values())
    by_class = {name: sum(entry["boxes_by_class"][name] for entry in splits.values()) for name in classes}
    report.section("Classes").bars(
        "Boxes by class", dict(sorted(by_class.items(), key=lambda pair: (-pair[1], pair[0])))
    )
    report.table(
        ("id", "class", *splits),
        [
            (int(number), name, *(entry["boxes_by_class"][name] for entry in splits.values()))
            for number, name in summary["classes"].items()
        ],
        caption="Boxes by class and split",
    )
    sizes: Counter[int] = sum((result.box_sizes for result in results), Counter())
    per_image: Counter[int] = sum((result.boxes_per_image for result in results), Counter())
    report.section("Boxes").histogram(
        "Size of the boxes", sorted(sizes.elements()), x_label="square root of the box's share of its image, in percent"
    )
    report.histogram("Boxes in an image", sorted(per_image.elements()), x_label="boxes")
    image_sizes: Counter[str] = sum((result.image_sizes for result in results), Counter())
    common = sorted(image_sizes.items(), key=lambda pair: (-pair[1], pair[0]))
    report.table(("image size", "images"), common, caption="Sizes of the images", limit=10)
    split = next(iter(splits))
    names = {int(number): name for number, name in summary["classes"].items()}
    shards = [directory / result.file for result in results if result.split == split]
    report.section("Pictures", f"As they are in the records of the split {split}.").images(
        "Images with their boxes", _annotated(shards, names), width=_PICTURE_WIDTH
    )
    _add_irregularities(report, found)
    report.write(directory / REPORT)


def _add_irregularities(report: Report, found: Sequence[Irregularity]) -> None:
    counts = Counter(item.reason for item in found)
    rules = [
        (reason, rule.action, counts[reason], rule.text)
        for reason, rule in sorted(RULES.items(), key=lambda pair: (ACTIONS.index(pair[1].action), pair[0]))
        if counts[reason]
    ]
    report.section(
        "Irregularities",
        "What was not as it should be, and what was done about it. All of it is in rejects.csv." if rules else "None.",
    )
    if not rules:
        return
    report.table(("rule", "action", "cases", "meaning"), rules, limit=None)
    notable = [item for item in sorted_by_weight(found) if RULES[item.reason].action != ACCEPTED]
    if notable:
        report.table(
            ("file", "rule", "action", "detail"),
            [(item.file, item.reason, RULES[item.reason].action, item.detail) for item in notable],
            caption="One by one",
            limit=200,
        )


def _annotated(shards: Sequence[Path], names: Mapping[int, str]) -> Iterator[tuple["Image.Image", str]]:
    """The first records of the first shards, drawn: what training sees, not what the raw data says."""
    pictures = 0
    per_shard = -(-_PICTURES // len(shards))
    for shard in shards:
        for number, record in enumerate(read_records(shard)):
            if number == per_shard or pictures == _PICTURES:
                break
            pictures += 1
            yield _draw(decode(record), names)


def _draw(features: Mapping[str, Any], names: Mapping[int, str]) -> tuple["Image.Image", str]:
    from PIL import Image

    image = Image.open(BytesIO(features["image/encoded"][0]))
    width, height = _PICTURE_WIDTH, max(1, _PICTURE_WIDTH * image.height // image.width)
    image.draft("RGB", (width, height))  # a JPEG is decoded at a fraction of its size, which is several times faster
    picture = image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
    sides = ("xmin", "ymin", "xmax", "ymax")
    corners = zip(*(features[f"image/object/bbox/{side}"] for side in sides), strict=True)
    labels = features["image/object/class/label"]
    masks = features.get("image/object/mask", [])
    for number, (label, box) in enumerate(zip(labels, corners, strict=True)):
        colour = _COLOURS[(label - 1) % len(_COLOURS)]
        if number < len(masks):
            mask = Image.open(BytesIO(masks[number])).resize((width, height), Image.Resampling.NEAREST)
            picture.paste(colour, mask=Image.eval(mask.convert("RGB").getchannel(0), lambda value: 110 * (value > 0)))
        left, right = round(box[0] * width), max(round(box[2] * width), round(box[0] * width) + 1)
        top, bottom = round(box[1] * height), max(round(box[3] * height), round(box[1] * height) + 1)
        for edge in (  # not ImageDraw, which loads fonts
            (left, top, right, min(top + _LINE, bottom)),
            (left, max(bottom - _LINE, top), right, bottom),
            (left, top, min(left + _LINE, right), bottom),
            (max(right - _LINE, left), top, right, bottom),
        ):
            picture.paste(colour, edge)
    counts = Counter(names[label] for label in labels)
    told = ", ".join(f"{count} {name}" if count > 1 else name for name, count in sorted(counts.items())) or "no object"
    return picture, f"{features['image/filename'][0].decode(errors='replace')}: {told}"
