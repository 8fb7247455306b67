"""What can be wrong with a raw data set, and what is done about it.

`RULES` is the one table: the converter names a rule, and `rejects.csv`, the report and the limit on bad images take the
action from here.
"""

import csv
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

REJECTED = "image rejected"
DROPPED = "box dropped"
CLIPPED = "box clipped"
REENCODED = "image re-encoded"
CORRECTED = "corrected"
LEFT_OUT = "left out"
ACCEPTED = "accepted"

# The order of rejects.csv: what costs data first.
ACTIONS = (REJECTED, DROPPED, CLIPPED, REENCODED, CORRECTED, LEFT_OUT, ACCEPTED)


class Rule(NamedTuple):
    """What is done about one kind of irregularity, and why."""

    action: str
    text: str


class Irregularity(NamedTuple):
    """One thing found. `file` is relative to the data folder; `reason` is a key of `RULES`."""

    file: str
    reason: str
    detail: str = ""


_TEXTS = {
    REJECTED: {
        "image-missing": "listed or annotated, but there is no image of that name",
        "image-unreadable": "the image is empty, cut off, damaged or of no known format",
        "image-taken": "no image has the XML's name, and the one that was found has an annotation already",
        "annotation-missing": "listed, but not annotated; it cannot be taken for an image without objects",
        "xml-malformed": "the XML is not well-formed, too large or too deep",
        "xml-forbidden": "the XML has a document type or entities, which are never followed",
        "xml-not-voc": "the XML is no VOC annotation",
        "size-and-boxes-disagree": "the annotated size is not the image's and boxes lie outside: of another image",
        "no-usable-box": "every box was dropped as faulty, so the objects' places are not known",
        "image-without-class": "its file name is not <class>_<number>",
        "trimap-unreadable": "the trimap cannot be read",
        "trimap-size": "the trimap's size is not the image's",
        "trimap-empty": "the trimap is all background",
    },
    DROPPED: {
        "box-zero-area": "less than one pixel between the corners",
        "box-inverted": "a maximum is below its minimum",
        "box-outside": "less than one pixel of it lies inside the image",
        "box-not-a-number": "a corner is missing or no number",
        "box-duplicate": "the same class and corners as a box before it",
        "box-without-class": "the object has no name",
        "class-not-in-label-map": "its class is not in the given label map",
        "box-difficult": "marked difficult, and --keep-difficult=false",
    },
    CLIPPED: {
        "box-beyond-edge": "reached beyond the image and was cut at its edge",
    },
    REENCODED: {
        "image-format": "neither JPEG nor PNG, so stored as one of them",
        "image-colours": "CMYK, 16-bit or another coding that decoders do not read alike; stored as 8-bit RGB or grey",
        "image-rotated": "its EXIF orientation was applied to the pixels, since the boxes are of the upright image",
    },
    CORRECTED: {
        "format-not-its-name": "the file's extension names another format; the content counts",
        "size-not-the-images": "the annotated size is not the image's, but all boxes fit; the image's counts",
        "size-missing": "no size in the annotation; the image's own counts",
        "depth-not-the-images": "the annotated depth is not the image's number of channels; the image's counts",
        "filename-not-the-images": "<filename> is not the image's name; the name of the XML counts",
        "filename-missing": "no <filename>; the name of the XML counts",
        "image-by-filename": "no image has the XML's name, so the one that <filename> names was taken",
        "image-in-another-folder": "the one image of the XML's name is in another sub-folder",
        "image-ambiguous": "images of one name with several extensions; the first of JPEG, PNG, others was taken",
        "listed-twice": "in several lists; kept for test before val before train, so that no test image is trained on",
        "orientation-kept": "has an EXIF orientation, but the boxes are of the stored pixels, which decoders show",
    },
    LEFT_OUT: {
        "empty-left-out": "no object in it, and --keep-empty=false",
        "not-annotated": "an image without annotation; it cannot be taken for an image without objects",
        "not-listed": "in no list of the data set",
        "not-an-image": "a file of another kind among the images",
    },
    ACCEPTED: {
        "no-objects": "no object in it: kept as a negative image",
        "image-grey": "a grey image; decoders make three equal channels of it",
        "flags-missing": "objects without pose, truncated or difficult: Unspecified, 0 and 0 are assumed",
        "path-foreign": "<path> is of another machine; it is never used",
        "extension-in-capitals": "the image's extension is in capitals",
        "xml-size-last": "<size> comes after the objects",
        "xml-no-declaration": "no XML declaration",
        "xml-byte-order-mark": "starts with a byte order mark",
        "xml-crlf": "lines end in CR LF",
    },
}
RULES = {reason: Rule(action, text) for action, texts in _TEXTS.items() for reason, text in texts.items()}


def sorted_by_weight(found: Iterable[Irregularity]) -> list[Irregularity]:
    """What costs data first, then by file; the same order for the same findings."""
    order = {reason: ACTIONS.index(rule.action) for reason, rule in RULES.items()}
    return sorted(found, key=lambda item: (order[item.reason], item.file, item.reason, item.detail))


def write_rejects(path: Path, found: Iterable[Irregularity]) -> None:
    """Write `rejects.csv`: file, reason, action, detail; one line for each finding."""
    # File names that are not UTF-8 are written as the bytes that they are.
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("file", "reason", "action", "detail"))
        writer.writerows(
            (item.file, item.reason, RULES[item.reason].action, item.detail) for item in sorted_by_weight(found)
        )


def top_reasons(found: Iterable[Irregularity], count: int = 3) -> str:
    """`2 image-unreadable (JPEGImages/a.jpg: cut off), ...`: why images were rejected, most frequent first."""
    rejected = [item for item in sorted_by_weight(found) if RULES[item.reason].action == REJECTED]
    parts = []
    for reason, number in Counter(item.reason for item in rejected).most_common(count):
        example = next(item for item in rejected if item.reason == reason)
        parts.append(f"{number} {reason} ({example.file}: {example.detail or RULES[reason].text})")
    return ", ".join(parts)
