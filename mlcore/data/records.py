"""The records that `convert` made, as the steps after it read them.

A folder of records holds

    train.tfrecord-00000-of-00007 ...   also val and test; a split without images has no files
    label_map.pbtxt                     classes, ids from 1
    rejects.csv, report.html            what was wrong with the data, and how it looks
    _SUCCESS.json                       written last: parameters, inputs, counts, sizes and digests

Nothing here imports TensorFlow.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from mlcore.data.label_map import read_label_map
from mlcore.runtime.errors import DataError, UsageError
from mlcore.runtime.outputs import read_success

SPLITS = ("train", "val", "test")
LABEL_MAP = "label_map.pbtxt"
REJECTS = "rejects.csv"
REPORT = "report.html"


def shard_name(split: str, index: int, count: int) -> str:
    """`train.tfrecord-00003-of-00010`."""
    return f"{split}.tfrecord-{index:05d}-of-{count:05d}"


@dataclass(frozen=True)
class RecordSplit:
    """One split of a record set.

    Attributes:
        name: train, val or test.
        shards: Its files, in order.
        images: Records in them.
        boxes: Boxes in them.
        boxes_by_class: Name of class -> boxes, every class of the label map.
    """

    name: str
    shards: tuple[Path, ...]
    images: int
    boxes: int
    boxes_by_class: Mapping[str, int]


@dataclass(frozen=True)
class RecordSet:
    """A folder of records.

    Attributes:
        path: The folder.
        classes: Id -> name, from the label map, ids from 1.
        digest: SHA-256 over the names and contents of all shards; the same for the same records.
        has_masks: Whether each box has a mask (image/object/mask).
        by_split: Split name -> split, in the order train, val, test; only those that have images.
        success: The whole of `_SUCCESS.json`.
    """

    path: Path
    classes: Mapping[int, str]
    digest: str
    has_masks: bool
    by_split: Mapping[str, RecordSplit]
    success: Mapping[str, Any]

    @classmethod
    def open(cls, data_dir: Path | str) -> Self:
        """Read what is in a folder, and check that every shard is there with its size.

        Raises:
            UsageError: The folder is missing, empty, or no folder of records.
            DataError: A shard or the label map is missing or has another size than when it was written.
        """
        path = Path(data_dir)
        if not path.is_dir():
            raise UsageError(f"--data-dir={path}: no such folder; expected the --output-dir of mlcore convert")
        success = read_success(path)
        if success is None:
            entries = sorted(entry.name for entry in path.iterdir() if not entry.name.startswith("."))
            held = f"holds {entries[0]} and no _SUCCESS.json" if entries else "is empty"
            raise UsageError(f"--data-dir={path}: {held}; expected a finished --output-dir of mlcore convert")
        if success.get("step") != "convert":
            raise UsageError(
                f"--data-dir={path}: made by the step {success.get('step')}; expected an --output-dir of mlcore convert"
            )
        results = success["results"]
        by_split = {}
        for name in (*SPLITS, *sorted(set(results["splits"]) - set(SPLITS))):
            if name in results["splits"]:
                by_split[name] = _read_split(path, name, results["splits"][name])
        classes = read_label_map(path / LABEL_MAP)
        return cls(path, classes, results["digest"], results["masks"], by_split, success)

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits that have images."""
        return tuple(self.by_split)

    def split(self, name: str) -> RecordSplit:
        """One split.

        Raises:
            UsageError: There is no such split; the message lists those that exist.
        """
        if name not in self.by_split:
            raise UsageError(f"{self.path}: no split {name}; there is {', '.join(self.splits)}")
        return self.by_split[name]

    def shards(self, split: str) -> list[Path]:
        """The files of a split, in order."""
        return list(self.split(split).shards)

    def pattern(self, split: str) -> str:
        """A glob pattern that matches the files of a split and nothing else."""
        return str(self.path / f"{self.split(split).name}.tfrecord-*-of-*")

    def count(self, split: str) -> int:
        """Images of a split."""
        return self.split(split).images


def _read_split(folder: Path, name: str, entry: Mapping[str, Any]) -> RecordSplit:
    shards = []
    for file, recorded in entry["shards"].items():
        shard = folder / file
        try:
            size = shard.stat().st_size
        except FileNotFoundError as error:
            raise DataError(f"{shard}: missing; _SUCCESS.json lists it, so convert the data set again") from error
        if size != recorded["size"]:
            raise DataError(
                f"{shard}: {size:,} bytes; expected {recorded['size']:,} as when it was written, so convert again"
            )
        shards.append(shard)
    return RecordSplit(name, tuple(shards), entry["images"], entry["boxes"], dict(entry["boxes_by_class"]))
