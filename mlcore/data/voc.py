"""Pascal VOC: the layout of its folders, and its XML annotations.

    JPEGImages/<name>.jpg           also images/; sub-folders (in Annotations/ alike, or not) and other formats are fine
    Annotations/<name>.xml          also annotations/
    ImageSets/Main/{train,val,trainval,test}.txt

Where no such folders are, annotation tools have often written each XML beside its picture (`find_flat_folders`):

    <any folder>/<name>.jpg, <name>.xml
    <one folder>/<name>.jpg, <another one>/<name>.xml

An XML belongs to the image of the same name; `<filename>`, `<folder>` and `<path>` are wrong too often (half of the
public sets have another extension, none at all or a path of another machine) and decide only where no image has the
XML's name.
"""

import os
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from mlcore.data.images import EXTENSIONS
from mlcore.data.irregularities import Irregularity
from mlcore.data.memory import collector_paused
from mlcore.data.sources import (
    Folder,
    Item,
    Source,
    SplitRules,
    digest_of,
    file_stem,
    images_by_stem,
    one_split_each,
    read_list,
    split_extension,
)  # fmt: skip

MAX_XML_BYTES = 16 << 20  # about 60,000 objects
MAX_XML_DEPTH = 32  # VOC needs 5 (annotation, object, part, bndbox, xmin)

_IMAGE_FOLDERS = ("JPEGImages", "images", "Images")
_ANNOTATION_FOLDERS = ("Annotations", "annotations")
_TRUE = frozenset(("1", "1.0", "true", "yes"))


class XmlError(Exception):
    """The XML cannot be used.

    Attributes:
        reason: The rule of `irregularities` that rejects it.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class VocObject(NamedTuple):
    """One object of an annotation; `corners` are (xmin, ymin, xmax, ymax) as written, NaN where they cannot be read."""

    name: str
    corners: tuple[float, float, float, float]
    pose: str
    truncated: int
    difficult: int


class VocAnnotation(NamedTuple):
    """One annotation.

    Attributes:
        size: Width and height as annotated, or None.
        depth: Channels as annotated, or None.
        filename: As annotated, or empty.
        objects: Its objects.
        notes: (rule, detail) of what was irregular in the XML itself.
    """

    size: tuple[int, int] | None
    depth: int | None
    filename: str
    objects: Sequence[VocObject]
    notes: Sequence[tuple[str, str]]


@cache
def _parser() -> Any:
    from lxml import etree

    # Nothing is fetched, no document type is loaded and no entity is expanded; libxml2's own limits stay on.
    return etree.XMLParser(
        resolve_entities=False, no_network=True, load_dtd=False, dtd_validation=False, attribute_defaults=False,
        huge_tree=False, recover=False, remove_comments=True, remove_pis=True,
    )  # fmt: skip


def parse_xml(data: bytes) -> Any:
    """The root element of an XML document that comes from anywhere.

    Raises:
        XmlError: It is not well-formed, has a document type (and with it entities), or is too large or too deep.
    """
    from lxml import etree

    if len(data) > MAX_XML_BYTES:
        raise XmlError("xml-malformed", f"{len(data):,} bytes; at most {MAX_XML_BYTES:,} are read")
    if b"<!DOCTYPE" in data:  # most are refused before the parser sees them
        raise XmlError("xml-forbidden", "has a document type (DOCTYPE)")
    try:
        root = etree.fromstring(data.lstrip(), _parser())
    except etree.XMLSyntaxError as error:
        raise XmlError("xml-malformed", str(error.msg)) from error
    except ValueError as error:
        raise XmlError("xml-malformed", str(error)) from error
    if root.getroottree().docinfo.internalDTD is not None:  # in an encoding where the bytes look otherwise
        raise XmlError("xml-forbidden", "has a document type (DOCTYPE)")
    return root


def _check_depth(root: Any) -> None:
    """Refuse nesting past `MAX_XML_DEPTH`, level by level and without recursion."""
    level, depth = [root], 1
    while level := [child for element in level for child in element]:
        depth += 1
        if depth > MAX_XML_DEPTH:
            raise XmlError("xml-malformed", f"more than {MAX_XML_DEPTH} elements inside each other")


def _number(text: str | None) -> float:
    try:
        return float(text) if text else float("nan")
    except ValueError:
        return float("nan")


def _whole(text: str | None) -> int | None:
    number = _number(text)
    return int(number) if number > 0 and number < 1e9 else None


def parse_voc(data: bytes) -> VocAnnotation:
    """A VOC annotation from the bytes of its file.

    Raises:
        XmlError: It is no VOC annotation, or `parse_xml` refuses it.
    """
    root = parse_xml(data)
    if root.tag != "annotation":
        raise XmlError("xml-not-voc", f"<{root.tag}>; expected <annotation>")
    width = height = depth = None
    filename, frame = "", ""
    objects: list[VocObject] = []
    notes: list[tuple[str, str]] = []
    bare = 0
    after_objects = False
    for child in root:
        tag = child.tag
        if tag == "object":
            voc_object, has_flags = _parse_object(child)
            objects.append(voc_object)
            bare += not has_flags
        elif tag == "size":
            values = {part.tag: part.text for part in child}
            width, height = _whole(values.get("width")), _whole(values.get("height"))
            depth = _whole(values.get("depth"))
            after_objects = bool(objects)
        elif tag == "filename":
            filename = (child.text or "").strip()
        elif tag == "frame":
            frame = (child.text or "").strip()
        elif tag == "path":
            path = (child.text or "").strip()
            if path.startswith("/") or "\\" in path or path[1:2] == ":":
                notes.append(("path-foreign", path))
        elif len(child):
            _check_depth(child)
    if not filename:
        notes.append(("filename-missing", f"<frame> {frame}" if frame else ""))
    if bare:
        notes.append(("flags-missing", f"{bare} of {len(objects)} objects"))
    if after_objects:
        notes.append(("xml-size-last", ""))
    if data[:2] in (b"\xff\xfe", b"\xfe\xff") or data[:3] == b"\xef\xbb\xbf":
        notes.append(("xml-byte-order-mark", ""))
    elif not data.lstrip().startswith(b"<?xml"):
        notes.append(("xml-no-declaration", ""))
    if b"\r\n" in data:
        notes.append(("xml-crlf", ""))
    size = (width, height) if width and height else None
    return VocAnnotation(size, depth, filename, objects, notes)


def _parse_object(element: Any) -> tuple[VocObject, bool]:
    name, pose, truncated, difficult = "", "Unspecified", 0, 0
    corners: dict[str, str | None] = {}
    flags = 0
    for child in element:
        tag = child.tag
        if tag == "name":
            name = (child.text or "").strip()
        elif tag == "bndbox":
            corners = corners or {corner.tag: corner.text for corner in child}
        elif tag == "truncated":
            truncated, flags = int((child.text or "").strip().lower() in _TRUE), flags + 1
        elif tag == "difficult":
            difficult, flags = int((child.text or "").strip().lower() in _TRUE), flags + 1
        elif tag == "pose":
            pose, flags = (child.text or "").strip() or pose, flags + 1
        elif len(child):  # <part> and what others add: not read, but it must not be bottomless
            _check_depth(child)
    box = tuple(_number(corners.get(side)) for side in ("xmin", "ymin", "xmax", "ymax"))
    return VocObject(name, (box[0], box[1], box[2], box[3]), pose, truncated, difficult), flags == 3


def find_folders(folder: Path) -> tuple[str, str] | None:
    """Names of the images' and the annotations' folder, where `folder` holds a VOC data set."""
    names = {entry.name for entry in os.scandir(folder) if entry.is_dir()}
    images = next((name for name in _IMAGE_FOLDERS if name in names), None)
    annotations = next((name for name in _ANNOTATION_FOLDERS if name in names), None)
    if not images or not annotations:
        return None
    if annotations == "annotations" and any((folder / annotations / part).is_dir() for part in ("xmls", "trimaps")):
        return None  # Pets
    return images, annotations


def find_flat_folders(folder: Path) -> tuple[str, str] | None:
    """Names of the images' and the annotations' folder where they go by other names, or where both are `folder` ("").

    Its own pictures and XMLs count where one XML at least has the name of a picture. Else, among the folders in it,
    there has to be exactly one with XMLs, and exactly one other with a picture that has the name of one of them.
    """
    own, folders = _stems(folder)
    if own.images & own.annotations:
        return "", ""
    if {"xmls", "trimaps"} & set(folders):
        return None  # the annotations of Pets
    stems = {name: _stems(folder / name)[0] for name in folders}
    with_xml = [name for name, found in stems.items() if found.annotations]
    if len(with_xml) != 1:
        return None
    names = stems[with_xml[0]].annotations
    with_images = [name for name, found in stems.items() if found.images & names and name != with_xml[0]]
    return (with_images[0], with_xml[0]) if len(with_images) == 1 else None


class _Stems(NamedTuple):
    """Names without extension of the files in one folder."""

    images: set[str]
    annotations: set[str]


def _stems(folder: Path) -> tuple[_Stems, list[str]]:
    """The names of the files and of the folders right in a folder."""
    stems, folders = _Stems(set(), set()), []
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.name.startswith("."):
            continue
        stem, extension = split_extension(entry.name)
        if entry.is_dir():
            folders.append(entry.name)
        elif extension.lower() == ".xml":
            stems.annotations.add(stem)
        elif extension.lower() in EXTENSIONS:
            stems.images.add(stem)
    return stems, folders


@collector_paused()
def read_source(root: Path, rules: SplitRules) -> Source:
    """The VOC data set in `root`."""
    folders = find_folders(root) or find_flat_folders(root)
    assert folders is not None, root
    images, annotations = (Folder.read(root, name) for name in folders)
    if images.prefix == annotations.prefix:
        images.files = {
            name: status
            for name, status in images.files.items()
            if not name.lower().endswith(".xml") and not name.startswith("ImageSets/")
        }
    lists = Folder.read(root, "ImageSets/Main")
    found: list[Irregularity] = []
    image_of = images_by_stem(images, found)
    xml_of = {name[:-4]: name for name in annotations.files if name.lower().endswith(".xml")}
    annotated = {image_of[stem]: xml_of[stem] for stem in xml_of.keys() & image_of.keys()}
    taken: dict[str, Irregularity] = {}
    elsewhere = _by_last_part(image_of)
    for stem in sorted(xml_of.keys() - image_of.keys()):
        reason = "image-in-another-folder"
        namesakes = elsewhere.get(stem.rpartition("/")[2], ())
        other = image_of[namesakes[0]] if len(namesakes) == 1 else ""
        if not other or other in annotated:
            named = _image_by_filename(root / (annotations.prefix + xml_of[stem]), images)
            reason, other = ("image-by-filename", named) if named else (reason, other)
        if other in annotated:  # one image twice could be trained on and tested with
            detail = f"{other}, of {annotated[other]}"
            taken[stem] = Irregularity(annotations.prefix + xml_of[stem], "image-taken", detail)
        elif other:
            annotated[other] = xml_of[stem]
            image_of[stem] = other
            # The image stands for its XML now, and not for itself without one.
            own = split_extension(other)[0]
            if own not in xml_of and image_of.get(own) == other:
                del image_of[own]
            found.append(Irregularity(annotations.prefix + xml_of[stem], reason, other))

    listed = _read_lists(root, rules, image_of, found) if rules.use_lists else None
    wanted = {name for names in listed.values() for name in names} if listed else None
    for name, file in image_of.items():
        if wanted is not None and name not in wanted:
            found.append(Irregularity(images.prefix + file, "not-listed"))
        elif name not in xml_of and wanted is None:
            found.append(Irregularity(images.prefix + file, "not-annotated"))
    divided = listed or rules.divide(sorted(xml_of))

    rejected = 0
    items: dict[str, list[Item]] = {}
    for split, names in divided.items():
        items[split] = []
        for name in names:
            if name in taken:
                found.append(taken[name])
                rejected += 1
            elif name not in image_of:
                found.append(Irregularity(images.prefix + name, "image-missing", f"of the split {split}"))
                rejected += 1
            elif name not in xml_of:
                found.append(
                    Irregularity(images.prefix + image_of[name], "annotation-missing", f"of the split {split}")
                )
                rejected += 1
            else:
                items[split].append(Item(name, images.prefix + image_of[name], annotations.prefix + xml_of[name]))
    return Source("voc", "xml", root, items, found, rejected, digest_of((images, annotations, lists)))


def _by_last_part(names: Iterable[str]) -> dict[str, list[str]]:
    """Last part of a name -> the names that end with it."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(name.rpartition("/")[2], []).append(name)
    return found


def _image_by_filename(xml: Path, images: Folder) -> str:
    """The image that the XML's `<filename>` names, where there is one."""
    try:
        filename = parse_voc(xml.read_bytes()).filename
    except (OSError, XmlError):
        return ""
    name = filename.replace("\\", "/").rpartition("/")[2]
    return name if name in images.files else ""


def _read_lists(
    root: Path, rules: SplitRules, image_of: dict[str, str], found: list[Irregularity]
) -> dict[str, list[str]] | None:
    """Names by split from ImageSets/Main, or None where it has no list with a name in it."""
    folder = root / "ImageSets" / "Main"
    lists: dict[str, list[str]] = {}
    for split in ("train", "val", "test", "trainval"):
        lines = read_list(folder / f"{split}.txt")
        if lines:
            lists[split] = [_listed_name(line, image_of) for line in lines]
    if not lists:
        return None
    trainval = lists.pop("trainval", [])
    if trainval and not lists.keys() & {"train", "val"}:
        known = set(lists.get("test", ()))
        divided = rules.divide_trainval(name for name in trainval if name not in known)
        lists |= {split: names for split, names in divided.items() if names}
    return one_split_each(lists, found, "ImageSets/Main: ")


def _listed_name(line: str, image_of: dict[str, str]) -> str:
    """The image's name in a line of a list: alone, with an extension, or before a flag (`000012 -1`)."""
    for candidate in (
        line,
        split_extension(line)[0],
        line.split(maxsplit=1)[0],
        split_extension(line.split(maxsplit=1)[0])[0],
    ):
        if candidate in image_of:
            return candidate
    return file_stem(line) if file_stem(line) in image_of else line.split(maxsplit=1)[0]
