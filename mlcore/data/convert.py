"""The step `convert`: from a raw detection data set to sharded TFRecords."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from mlcore.runtime.errors import UsageError
from mlcore.runtime.outputs import OutputDirectory, file_digest
from mlcore.runtime.parameters import Environment, Range, step

if TYPE_CHECKING:
    from mlcore.data.sources import Source, SplitRules

_MAX_DEPTH = 3  # folders below --data-dir that are searched for a data set


@dataclass(frozen=True)
class ConvertResult:
    """What `convert` made.

    Attributes:
        output_dir: The folder of records.
        images: Images in the records.
        boxes: Boxes in the records.
        boxes_dropped: Boxes of the annotations that are not in the records.
        rejected: Images that could not be used.
        left_out: Images that are no part of the task: in no list, without annotation.
        classes: Number of classes.
        train_images: Images for training.
        val_images: Images for validation.
        test_images: Images for testing.
        shards: Number of record files.
        digest: SHA-256 of the records' contents.
    """

    output_dir: Path
    images: int
    boxes: int
    boxes_dropped: int
    rejected: int
    left_out: int
    classes: int
    train_images: int
    val_images: int
    test_images: int
    shards: int
    digest: str


@step
def convert(
    *,
    data_dir: Path,
    output_dir: Path,
    layout: Literal["auto", "voc", "pets"] = "auto",
    target: Literal["heads", "bodies"] = "heads",
    label_map: Path | None = None,
    shards: Annotated[int, Range(min=0, max=99_999)] = 0,
    workers: Annotated[int, Range(min=0)] = 1,
    max_bad_fraction: Annotated[float, Range(min=0, max=1)] = 0.01,
    seed: int = 42,
    val_fraction: Annotated[float, Range(min=0, max=1)] = 0.15,
    test_fraction: Annotated[float, Range(min=0, max=1)] = 0.15,
    use_lists: bool = True,
    box_origin: Literal["auto", "0", "1"] = "auto",
    orientation: Literal["auto", "stored", "upright"] = "auto",
    keep_empty: bool = True,
    keep_difficult: bool = True,
    verify_images: bool = False,
    shard_index: Annotated[int, Range(min=0), Environment(("JOB_COMPLETION_INDEX",))] = 0,
    shard_count: Annotated[int, Range(min=1)] = 1,
    overwrite: bool = False,
) -> ConvertResult:
    """Convert a Pascal VOC or Oxford-IIIT Pet data set to TFRecords for training.

    Reads images and annotations, writes <split>.tfrecord-*-of-*, label_map.pbtxt, rejects.csv (all that was wrong, and
    what was done about it), report.html and _SUCCESS.json. The same data and parameters give the same records, whatever
    the number of processes or pods.

    Args:
        data_dir: Folder of the raw data set, or a folder above it.
        output_dir: Folder of records to make.
        layout: Form of the data set; auto looks for Annotations/ with JPEGImages/ or images/ (voc), or for
            annotations/xmls or annotations/trimaps with images/ (pets); where there is neither, for XMLs beside the
            pictures of the same names, or in the one folder beside theirs (voc).
        target: What is boxed in pets: heads (from the XML), or whole bodies with masks (from the trimaps).
        label_map: Classes and their ids (.pbtxt); objects of other classes are dropped. Without it, every class
            of the data set, sorted, from 1.
        shards: Record files for each split, at most one for each image; 0 makes one for every 32 images up to ten, then
            one for every 1,000.
        workers: Processes; 0 for one on each core that a container's CPU limit allows. It does not change the result.
        max_bad_fraction: Share of rejected images above which the conversion fails. An image counts as rejected if it
            is listed or annotated and cannot be used: it or its annotation is missing, damaged, or every box is faulty.
            Single boxes that are dropped do not count, nor do images that are left out.
        seed: Decides which images go to which split, where no lists do, and the order of the records.
        val_fraction: Share of the images for validation where the data set has no lists, or of a list `trainval` where
            it has none for train and val.
        test_fraction: Share of the images for testing where the data set has no lists.
        use_lists: Take the splits from ImageSets/Main or annotations/*.txt where they exist.
        box_origin: Whether pixels are counted from 1 with both corners included (VOC) or edges from 0; auto takes 0 if
            more boxes of the data set start at 0 than at 1.
        orientation: For images with an EXIF rotation, which training ignores: whether boxes are of the stored pixels or
            of the upright image, which is then stored anew. auto compares the annotated size, and takes upright where
            it tells nothing.
        keep_empty: Keep images without objects, as negatives.
        keep_difficult: Keep objects marked difficult (with their mark).
        verify_images: Decode every image in full. Without it, files that are no image, JPEGs that are cut off and PNGs
            with a wrong checksum are found all the same, from headers and markers; with it, also those that a decoder
            refuses in the middle. Costs several times the rest of the conversion.
        shard_index: Which share of the shards this process makes, where several pods convert one data set.
        shard_count: Number of such pods. All must get the same parameters and folders; the last one to end
            puts the result together.
        overwrite: Replace records that were made from other data or parameters.

    Raises:
        UsageError: There is no data set of the layout, or parameters contradict each other.
        DataError: Too many images were rejected, no box is left, or the output holds something else.
        TransientError: A worker process was killed, or the disk is full.
    """
    from mlcore.data.conversion import Conversion, nothing_to_convert, plan
    from mlcore.data.label_map import read_label_map
    from mlcore.data.sources import SplitRules

    if val_fraction + test_fraction > 1:
        raise UsageError(f"--val-fraction={val_fraction:g} and --test-fraction={test_fraction:g}: together more than 1")
    if shard_index >= shard_count:
        raise UsageError(
            f"--shard-index={shard_index} (or JOB_COMPLETION_INDEX): expected less than --shard-count={shard_count}"
        )
    rules = SplitRules(seed, val_fraction, test_fraction, use_lists)
    given_classes = read_label_map(label_map) if label_map else None
    source = _find_source(data_dir, layout, target, rules)
    if target == "bodies" and source.layout != "pets":
        raise UsageError(
            "--target=bodies: expected the layout pets, whose trimaps show bodies; this data set is of voc"
        )
    output = OutputDirectory(
        output_dir,
        step="convert",
        parameters={
            "layout": source.layout, "target": target if source.layout == "pets" else "", "shards": shards,
            "max_bad_fraction": max_bad_fraction, "seed": seed, "val_fraction": val_fraction,
            "test_fraction": test_fraction, "use_lists": use_lists, "box_origin": box_origin,
            "orientation": orientation, "keep_empty": keep_empty, "keep_difficult": keep_difficult,
            "verify_images": verify_images,
        },
        inputs={"data": source.digest, "label_map": file_digest(label_map) if label_map else ""},
        reads=[source.root, *([label_map] if label_map else [])],
        overwrite=overwrite,
    )  # fmt: skip
    if (done := output.existing()) is not None:
        return _result(output_dir, done["results"])
    if not any(source.items.values()):
        raise nothing_to_convert(source)
    job = plan(
        source, shards=shards, seed=seed, keep_empty=keep_empty, keep_difficult=keep_difficult, orientation=orientation,
        verify_images=verify_images,
    )  # fmt: skip
    conversion = Conversion(source, job, given_classes, box_origin, max_bad_fraction, workers)
    if shard_count == 1:
        with output.writing(durable=False) as directory:
            results, decisions = conversion.run(directory, list(job.shards))
            output.results = conversion.finish(directory, results, decisions)
        return _result(output_dir, output.results)
    from mlcore.data.pods import convert_part

    return _result(output_dir, convert_part(conversion, output, shard_index, shard_count))


def _result(output_dir: Path, results: Mapping[str, Any] | None) -> ConvertResult:
    """The step's result; all zero while other pods are at work."""
    results = results or {}
    splits = results.get("splits", {})
    images = {split: splits[split]["images"] if split in splits else 0 for split in ("train", "val", "test")}
    return ConvertResult(
        output_dir=output_dir,
        images=results.get("images", 0),
        boxes=results.get("boxes", 0),
        boxes_dropped=results.get("boxes_dropped", 0),
        rejected=results.get("rejected", 0),
        left_out=results.get("left_out", 0),
        classes=len(results.get("classes", ())),
        train_images=images["train"],
        val_images=images["val"],
        test_images=images["test"],
        shards=sum(len(entry["shards"]) for entry in splits.values()),
        digest=results.get("digest", ""),
    )


def _find_source(
    data_dir: Path, layout: Literal["auto", "voc", "pets"], target: Literal["heads", "bodies"], rules: "SplitRules"
) -> "Source":
    """The one data set in a folder or below it."""
    from mlcore.data import pets, voc

    if not data_dir.is_dir():
        raise UsageError(f"--data-dir={data_dir}: no such folder; expected a data set such as mlcore extract makes")
    kinds: dict[str, Callable[[Path], bool]] = {
        "voc": lambda folder: voc.find_folders(folder) is not None,
        "pets": pets.matches,
    }
    wanted = {name: is_one for name, is_one in kinds.items() if layout in ("auto", name)}
    matches = _search(data_dir, wanted)
    if not matches and "voc" in wanted:
        matches = _search(data_dir, {"voc": lambda folder: voc.find_flat_folders(folder) is not None})
    if not matches:
        expected = {
            "voc": "JPEGImages/ (or images/) with Annotations/*.xml, or pictures with XMLs of the same names",
            "pets": "images/ with annotations/xmls or annotations/trimaps",
        }
        entries = sorted(entry.name for entry in data_dir.iterdir() if not entry.name.startswith("."))
        held = f"it holds {', '.join(entries[:5])}{', ...' if len(entries) > 5 else ''}" if entries else "it is empty"
        forms = ", or ".join(f"{expected[kind]} ({kind})" for kind in wanted)
        raise UsageError(f"--data-dir={data_dir}: no data set in it; expected {forms}, but {held}")
    if len(matches) > 1:
        names = ", ".join(str(folder) for folder, _ in matches[:5])
        raise UsageError(f"--data-dir={data_dir}: {len(matches)} data sets in it; name one of {names}")
    folder, kind = matches[0]
    return pets.read_source(folder, rules, target) if kind == "pets" else voc.read_source(folder, rules)


def _search(data_dir: Path, kinds: Mapping[str, Callable[[Path], bool]]) -> list[tuple[Path, str]]:
    """The folders that are of a kind, and of which; not those inside of one."""
    matches: list[tuple[Path, str]] = []
    level = [data_dir]
    for _ in range(_MAX_DEPTH + 1):
        below: list[Path] = []
        for folder in level:
            kind = next((name for name, is_one in kinds.items() if is_one(folder)), None)
            if kind:
                matches.append((folder, kind))
            else:
                below += _folders(folder)
        level = below
    return matches


def _folders(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:
        return sorted(Path(entry.path) for entry in entries if entry.is_dir() and not entry.name.startswith("."))
