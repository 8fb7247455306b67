"""What passes between the plan of a conversion and the processes that carry it out."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from mlcore.data.irregularities import Irregularity
from mlcore.data.sources import Item

Orientation = Literal["auto", "stored", "upright"]


@dataclass(frozen=True)
class Job:
    """What every worker knows before the first round.

    Attributes:
        root: Folder of the raw data set.
        annotations: xml or trimap.
        shards: Items of each shard, by (split, index); all of the data set.
        counts: Split -> number of its shards.
        source_ids: Name of item -> image/source_id.
        keep_empty: Whether images without objects become records.
        keep_difficult: Whether objects marked difficult become boxes.
        orientation: What is done with EXIF orientations.
        verify_images: Whether every image is decoded.
    """

    root: Path
    annotations: Literal["xml", "trimap"]
    shards: Mapping[tuple[str, int], Sequence[Item]]
    counts: Mapping[str, int]
    source_ids: Mapping[str, int]
    keep_empty: bool
    keep_difficult: bool
    orientation: Orientation
    verify_images: bool


@dataclass
class Evidence:
    """What the first round finds in the annotations; decides the label map and how pixels are counted."""

    classes: Counter[str] = field(default_factory=Counter)
    starts_at_0: int = 0
    starts_at_1: int = 0

    def add(self, other: "Evidence") -> None:
        """Count another shard's findings too."""
        self.classes.update(other.classes)
        self.starts_at_0 += other.starts_at_0
        self.starts_at_1 += other.starts_at_1


@dataclass(frozen=True)
class Decisions:
    """What the first round decided for the second."""

    class_ids: Mapping[str, int]
    one_based: bool


@dataclass
class ShardResult:
    """What is in a finished shard, and what was found on the way.

    Attributes:
        split: train, val or test.
        index: Of the shard in its split.
        file: Name of the file.
        size: Bytes.
        digest: SHA-256 over each record's image digest and checksum.
        images: Records.
        negatives: Records without boxes.
        boxes: Boxes in the records.
        boxes_dropped: Boxes of the annotations that are not in the records, those of rejected images included.
        rejected: Images that were rejected.
        boxes_by_class: Class -> boxes.
        box_sizes: Square root of a box's share of its image in percent, rounded -> boxes.
        boxes_per_image: Boxes in an image -> images.
        image_sizes: "640x480" -> images.
        found: What was irregular.
    """

    split: str
    index: int
    file: str
    size: int = 0
    digest: str = ""
    images: int = 0
    negatives: int = 0
    boxes: int = 0
    boxes_dropped: int = 0
    rejected: int = 0
    boxes_by_class: Counter[str] = field(default_factory=Counter)
    box_sizes: Counter[int] = field(default_factory=Counter)
    boxes_per_image: Counter[int] = field(default_factory=Counter)
    image_sizes: Counter[str] = field(default_factory=Counter)
    found: list[Irregularity] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """As plain values, for the hand-over between pods."""
        # Not dataclasses.asdict, which makes Counters of pairs.
        return {spec.name: getattr(self, spec.name) for spec in fields(self)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "ShardResult":
        """The inverse of `as_json` after a round trip through JSON."""
        return cls(
            **{
                **values,
                "boxes_by_class": Counter(values["boxes_by_class"]),
                "box_sizes": Counter({int(key): count for key, count in values["box_sizes"].items()}),
                "boxes_per_image": Counter({int(key): count for key, count in values["boxes_per_image"].items()}),
                "image_sizes": Counter(values["image_sizes"]),
                "found": [Irregularity(*found) for found in values["found"]],
            }
        )
