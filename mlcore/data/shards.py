"""From raw images and annotations to shards of records; runs in every worker process of `convert`."""

import hashlib
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mlcore.data import boxes as geometry
from mlcore.data import example, images, voc
from mlcore.data.boxes import Box
from mlcore.data.images import Header, ImageError
from mlcore.data.irregularities import Irregularity
from mlcore.data.memory import collector_paused, keep_freed_memory
from mlcore.data.plan import Decisions, Evidence, Job, ShardResult
from mlcore.data.records import shard_name
from mlcore.data.sources import Item, split_extension
from mlcore.data.tfrecord import TFRecordWriter

_PROGRESS_EVERY = 32
_READ_BYTES = 1 << 20
_MAX_KEPT = 100_000  # parsed annotations that one process keeps in memory between the two rounds
_FITS_WITHIN = 1.5  # pixels: a box may lie this far outside and still be of this image (a count from 0 or 1, rounding)


class Labelled(NamedTuple):
    """A box that goes into a record; `mask` is a PNG or empty, `area` is in pixels."""

    label: str
    box: Box
    area: float
    pose: str = "Unspecified"
    truncated: int = 0
    difficult: int = 0
    mask: bytes = b""


class Rejected(Exception):
    """An image cannot become a record; the rule and what is particular."""

    def __init__(self, reason: str, detail: str = "", file: str = "") -> None:
        super().__init__(detail)
        self.reason, self.detail, self.file = reason, detail, file


class LeftOut(Exception):
    """An image does not become a record, by the user's choice."""


class Converter:
    """Converts shards of one data set. Its methods are called by `Workers.run`."""

    def __init__(self, job: Job) -> None:
        keep_freed_memory()
        self._job = job
        self._root = os.fspath(job.root)
        self._encoder = _encoder(job.annotations == "trimap")
        self._kept: dict[str, voc.VocAnnotation] = {}
        self._decisions = Decisions({}, True)
        self._result = ShardResult("", 0, "")

    @collector_paused()
    def scan(self, split: str, index: int, keep: bool, report: Callable[[int], None]) -> Evidence:
        """Read the annotations of a shard; remember them if it will be converted here too."""
        evidence = Evidence()
        for item in self._job.shards[split, index]:
            try:
                annotation = self._annotation(item)
            except Rejected:
                continue  # told in the second round
            if keep and len(self._kept) < _MAX_KEPT:
                self._kept[item.name] = annotation
            for voc_object in annotation.objects:
                if label := item.label or voc_object.name:
                    evidence.classes[label] += 1
                first = min(voc_object.corners[:2])
                evidence.starts_at_0 += first == 0
                evidence.starts_at_1 += first == 1
        return evidence

    def convert(
        self, split: str, index: int, directory: Path, decisions: Decisions, report: Callable[[int], None]
    ) -> ShardResult:
        """Write one shard."""
        self._decisions = decisions
        result = self._result = ShardResult(split, index, shard_name(split, index, self._job.counts[split]))
        digest = hashlib.sha256()
        unreported = 0
        with TFRecordWriter(directory / result.file) as writer:
            for item in self._job.shards[split, index]:
                try:
                    head, data, key = self._record(item)
                    digest.update(b"%s%08x" % (key, writer.write(head, data)))
                except Rejected as rejected:
                    result.rejected += 1
                    self._note(rejected.file or item.image, rejected.reason, rejected.detail)
                except LeftOut:
                    pass
                unreported += 1
                if unreported == _PROGRESS_EVERY:
                    report(unreported)
                    unreported = 0
        report(unreported)
        result.size, result.digest = writer.size, digest.hexdigest()
        return result

    def _note(self, file: str, reason: str, detail: str = "") -> None:
        self._result.found.append(Irregularity(file, reason, detail))

    def _read(self, name: str) -> bytes:
        descriptor = os.open(f"{self._root}/{name}", os.O_RDONLY)  # less than half the time of Path.read_bytes
        try:
            size = os.fstat(descriptor).st_size
            data = os.read(descriptor, size + 1)
            while chunk := os.read(descriptor, _READ_BYTES) if len(data) != size else b"":
                data += chunk
            return data
        finally:
            os.close(descriptor)

    def _annotation(self, item: Item) -> voc.VocAnnotation:
        annotation = self._kept.pop(item.name, None)
        if annotation is not None:
            return annotation
        try:
            return voc.parse_voc(self._read(item.annotation))
        except voc.XmlError as error:
            raise Rejected(error.reason, str(error), item.annotation) from error
        except OSError as error:
            raise Rejected("xml-malformed", f"cannot be read ({error.strerror})", item.annotation) from error

    def _record(self, item: Item) -> tuple[bytes, bytes, bytes]:
        """The record of an item up to its image, the image, and its SHA-256 in hexadecimal."""
        # All that may reject comes first, so that a rejected image is counted in nothing else.
        if self._job.annotations == "trimap":
            data, header, labelled, dropped = self._from_trimap(item)
        else:
            data, header, labelled, dropped = self._from_xml(item)
        key = hashlib.sha256(data).hexdigest().encode()
        head = self._encode(item, data, header, labelled, key)
        result = self._result
        result.images += 1
        result.boxes_dropped += dropped
        result.boxes += len(labelled)
        result.negatives += not labelled
        result.boxes_per_image[len(labelled)] += 1
        result.image_sizes[f"{header.width}x{header.height}"] += 1
        pixels = header.width * header.height
        for entry in labelled:
            box = entry.box
            result.boxes_by_class[entry.label] += 1
            share = (box.xmax - box.xmin) * (box.ymax - box.ymin) / pixels
            result.box_sizes[round(100 * math.sqrt(share))] += 1
        return head, data, key

    def _image(self, item: Item) -> tuple[bytes, Header]:
        try:
            data = self._read(item.image)
            header = images.read_header(data)
            if self._job.verify_images and not header.problem:
                images.decode(data)
        except OSError as error:
            raise Rejected("image-unreadable", f"cannot be read ({error.strerror})") from error
        except ImageError as error:
            raise Rejected("image-unreadable", str(error)) from error
        return data, header

    def _final_image(
        self, item: Item, data: bytes, header: Header, annotated: tuple[int, int] | None
    ) -> tuple[bytes, Header]:
        """The image as it is stored: unchanged, or decoded and coded anew."""
        upright = header.orientation != 1 and self._is_upright(header, annotated)
        if header.orientation != 1 and not upright:
            self._note(item.image, "orientation-kept", f"orientation {header.orientation}")
        if not header.problem and not upright:
            return data, header
        try:
            fresh, final = images.reencode(data, header, upright=upright)
        except ImageError as error:
            raise Rejected("image-unreadable", str(error)) from error
        if header.problem:
            self._note(item.image, header.problem, f"{header.format}, now {final.format}")
        if upright:
            self._note(item.image, "image-rotated", f"orientation {header.orientation}")
        return fresh, final

    def _is_upright(self, header: Header, annotated: tuple[int, int] | None) -> bool:
        """Whether the boxes are of the image as its EXIF orientation shows it.

        The annotated size tells where the rotation swaps width and height and that size is one of the two. Otherwise
        nothing tells; upright it is then, as browsers and annotation tools show pictures.
        """
        if self._job.orientation != "auto":
            return self._job.orientation == "upright"
        stored = (header.width, header.height)
        return stored == header.upright_size or annotated != stored

    def _from_xml(self, item: Item) -> tuple[bytes, Header, list[Labelled], int]:
        annotation = self._annotation(item)
        self._result.boxes_dropped += len(annotation.objects)  # taken back below, once the image is not rejected
        raw, raw_header = self._image(item)
        data, header = self._final_image(item, raw, raw_header, annotation.size)
        labelled, faults, chosen = self._boxes(item, annotation, header)
        if not labelled:
            if faults:
                raise Rejected("no-usable-box", f"{faults} of {len(annotation.objects)} boxes faulty", item.annotation)
            if not self._job.keep_empty:
                self._note(item.annotation, "empty-left-out")
                raise LeftOut
            if not annotation.objects:
                self._note(item.annotation, "no-objects")
        self._note_file(item, raw_header)
        self._note_annotation(item, annotation, header)
        self._result.boxes_dropped -= len(annotation.objects)
        return data, header, labelled, faults + chosen

    def _note_file(self, item: Item, header: Header) -> None:
        """What is odd about the image's file; nothing of it changes the record."""
        extension = split_extension(item.image)[1]
        if extension != extension.lower():
            self._note(item.image, "extension-in-capitals", extension)
        named = images.EXTENSIONS.get(extension.lower())  # None where only <filename> led to it
        if named != header.format and (named, header.format) != ("jpeg", "mpo"):
            self._note(item.image, "format-not-its-name", f"{header.format} named {extension or 'without extension'}")
        if header.channels == 1:
            self._note(item.image, "image-grey")

    def _note_annotation(self, item: Item, annotation: voc.VocAnnotation, header: Header) -> None:
        """What is odd about the XML; nothing of it changes the record."""
        for reason, detail in annotation.notes:
            self._note(item.annotation, reason, detail)
        if annotation.size is None:
            self._note(item.annotation, "size-missing")
        elif annotation.size != (header.width, header.height):
            width, height = annotation.size
            detail = f"{width}x{height} annotated, {header.width}x{header.height} is right"
            self._note(item.annotation, "size-not-the-images", detail)
        if annotation.depth is not None and annotation.depth != header.channels:
            detail = f"{annotation.depth} annotated, {header.channels} is right"
            self._note(item.annotation, "depth-not-the-images", detail)
        if annotation.filename and annotation.filename != item.image.rpartition("/")[2]:
            self._note(item.annotation, "filename-not-the-images", annotation.filename)

    def _boxes(self, item: Item, annotation: voc.VocAnnotation, header: Header) -> tuple[list[Labelled], int, int]:
        """The boxes that go into the record, how many were dropped as faulty, and how many by the user's choice."""
        width, height = header.width, header.height
        wrong_size = annotation.size is not None and annotation.size != (width, height)
        labelled: list[Labelled] = []
        found: list[Irregularity] = []
        seen = set()
        faults = chosen = 0
        for number, voc_object in enumerate(annotation.objects, start=1):
            label = item.label or voc_object.name
            placed = geometry.place(voc_object.corners, width, height, one_based=self._decisions.one_based)
            if wrong_size and placed.overshoot > _FITS_WITHIN:
                size = annotation.size or (0, 0)
                detail = f"{size[0]}x{size[1]} annotated, {width}x{height} is right; box {number} reaches beyond"
                raise Rejected("size-and-boxes-disagree", detail, item.annotation)
            reason = placed.reason
            if not label:
                reason = "box-without-class"
            elif label not in self._decisions.class_ids:
                reason = "class-not-in-label-map"
            elif voc_object.difficult and not self._job.keep_difficult:
                reason = "box-difficult"
            elif placed.box is not None and (label, voc_object.corners) in seen:
                reason = "box-duplicate"
            if reason:
                corners = ", ".join(f"{corner:g}" for corner in voc_object.corners)
                found.append(Irregularity(item.annotation, reason, f"object {number}, {label or '?'}: {corners}"))
            if placed.box is not None and reason in ("", "box-beyond-edge"):
                seen.add((label, voc_object.corners))
                box = placed.box
                labelled.append(
                    Labelled(
                        label,
                        box,
                        (box.xmax - box.xmin) * (box.ymax - box.ymin),
                        voc_object.pose,
                        voc_object.truncated,
                        voc_object.difficult,
                    )
                )
            elif reason in ("class-not-in-label-map", "box-difficult"):
                chosen += 1
            else:
                faults += 1
        self._result.found += found
        return labelled, faults, chosen

    def _from_trimap(self, item: Item) -> tuple[bytes, Header, list[Labelled], int]:
        from mlcore.data import masks

        self._result.boxes_dropped += 1
        if item.label not in self._decisions.class_ids:
            self._note(item.image, "class-not-in-label-map", item.label)
            if not self._job.keep_empty:
                raise LeftOut
        raw, raw_header = self._image(item)
        try:
            mask = masks.read_trimap(self._read(item.annotation))
        except OSError as error:
            raise Rejected("trimap-unreadable", f"cannot be read ({error.strerror})", item.annotation) from error
        except ImageError as error:
            raise Rejected("trimap-unreadable", str(error), item.annotation) from error
        data, header = self._final_image(item, raw, raw_header, (mask.width, mask.height))
        if (mask.width, mask.height) != (header.width, header.height):
            detail = f"{mask.width}x{mask.height}, the image is {header.width}x{header.height}"
            raise Rejected("trimap-size", detail, item.annotation)
        self._note_file(item, raw_header)
        if item.label not in self._decisions.class_ids:
            return data, header, [], 0
        box, area = masks.bounding_box(mask)
        if box is None:
            raise Rejected("trimap-empty", "", item.annotation)
        self._result.boxes_dropped -= 1
        return data, header, [Labelled(item.label, box, area, mask=masks.encode_mask(mask))], 0

    def _encode(self, item: Item, data: bytes, header: Header, labelled: list[Labelled], key: bytes) -> bytes:
        width, height = header.width, header.height
        class_ids = self._decisions.class_ids
        values: dict[str, Sequence[Any]] = {
            "image/filename": [item.image.rpartition("/")[2].encode("utf-8", "surrogateescape")],
            "image/source_id": [str(self._job.source_ids[item.name]).encode()],
            "image/key/sha256": [key],
            "image/format": [header.format.encode()],
            "image/height": [height],
            "image/width": [width],
            "image/object/class/text": [entry.label.encode() for entry in labelled],
            "image/object/class/label": [class_ids[entry.label] for entry in labelled],
            "image/object/bbox/xmin": [entry.box.xmin / width for entry in labelled],
            "image/object/bbox/xmax": [entry.box.xmax / width for entry in labelled],
            "image/object/bbox/ymin": [entry.box.ymin / height for entry in labelled],
            "image/object/bbox/ymax": [entry.box.ymax / height for entry in labelled],
            "image/object/area": [entry.area for entry in labelled],
            "image/object/view": [entry.pose.encode() for entry in labelled],
            "image/object/difficult": [entry.difficult for entry in labelled],
            "image/object/truncated": [entry.truncated for entry in labelled],
            "image/object/is_crowd": [0] * len(labelled),
        }
        if self._job.annotations == "trimap":
            values["image/object/mask"] = [entry.mask for entry in labelled]
        return self._encoder.encode_around(values, "image/encoded", len(data))


def _encoder(masks: bool) -> example.ExampleEncoder:
    """For all features of a record but the picture."""
    sides = ("xmin", "xmax", "ymin", "ymax")
    return example.ExampleEncoder(
        bytes_lists=[
            "image/filename", "image/source_id", "image/key/sha256", "image/format", "image/object/class/text",
            "image/object/view", *(["image/object/mask"] if masks else []),
        ],
        float_lists=[*(f"image/object/bbox/{side}" for side in sides), "image/object/area"],
        int64_lists=[
            "image/height", "image/width", "image/object/class/label", "image/object/difficult",
            "image/object/truncated", "image/object/is_crowd",
        ],
    )  # fmt: skip
