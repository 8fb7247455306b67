"""Oxford-IIIT Pet: the layout of its folders.

    images/<Breed>_<n>.jpg
    annotations/xmls/<Breed>_<n>.xml        heads, for about half of the images
    annotations/trimaps/<Breed>_<n>.png     whole bodies: 1 pet, 2 background, 3 border
    annotations/{list,trainval,test}.txt    lines "id class species breed"

The class is in the file name: the XML's `<name>` says cat or dog only.
"""

import re
from pathlib import Path
from typing import Literal

from mlcore.data.irregularities import Irregularity
from mlcore.data.memory import collector_paused
from mlcore.data.sources import (
    Folder,
    Item,
    Source,
    SplitRules,
    digest_of,
    images_by_stem,
    one_split_each,
    read_list,
)  # fmt: skip
from mlcore.runtime.errors import UsageError

_NAME = re.compile(r"(?:.*/)?(?P<breed>.+)_\d+")


def class_of(name: str) -> str:
    """american_bulldog for american_bulldog_12; empty where the name has not this form."""
    match = _NAME.fullmatch(name)
    return match["breed"] if match else ""


def matches(folder: Path) -> bool:
    """Whether `folder` holds a Pets data set."""
    annotations = folder / "annotations"
    parts = ("xmls", "trimaps")
    return (folder / "images").is_dir() and any((annotations / part).is_dir() for part in parts)


@collector_paused()
def read_source(root: Path, rules: SplitRules, target: Literal["heads", "bodies"]) -> Source:
    """The Pets data set in `root`.

    Raises:
        UsageError: It has no annotations for this target.
    """
    kind, extension = ("xmls", ".xml") if target == "heads" else ("trimaps", ".png")
    images = Folder.read(root, "images")
    annotations = Folder.read(root, f"annotations/{kind}")
    lists = Folder.read(root, "annotations", deep=False)
    lists.files = {name: status for name, status in lists.files.items() if name.endswith(".txt")}
    annotation_of = {name[: -len(extension)]: name for name in annotations.files if name.lower().endswith(extension)}
    if not annotation_of:
        other = "bodies" if target == "heads" else "heads"
        raise UsageError(
            f"--target={target}: no {extension} file in {root / 'annotations' / kind}; extract annotations.tar.gz "
            f"there, or try --target={other}"
        )
    found: list[Irregularity] = []
    image_of = images_by_stem(images, found)
    divided = _read_lists(root, rules, found) if rules.use_lists else None
    if divided is None:
        divided = rules.divide(sorted(image_of))
    else:
        listed = {name for names in divided.values() for name in names}
        for name, file in image_of.items():
            if name not in listed:
                found.append(Irregularity(images.prefix + file, "not-listed"))
    rejected = 0
    items: dict[str, list[Item]] = {}
    for split, names in divided.items():
        items[split] = []
        for name in names:
            label = class_of(name)
            if name not in image_of:
                found.append(Irregularity(images.prefix + name, "image-missing", f"of the split {split}"))
                rejected += 1
            elif name not in annotation_of:
                detail = f"no annotations/{kind}/{name}{extension}"
                found.append(Irregularity(images.prefix + image_of[name], "not-annotated", detail))
            elif not label:
                found.append(Irregularity(images.prefix + image_of[name], "image-without-class"))
                rejected += 1
            else:
                paths = images.prefix + image_of[name], annotations.prefix + annotation_of[name]
                items[split].append(Item(name, *paths, label))
    annotation_kind: Literal["xml", "trimap"] = "xml" if target == "heads" else "trimap"
    return Source("pets", annotation_kind, root, items, found, rejected, digest_of((images, annotations, lists)))


def _read_lists(root: Path, rules: SplitRules, found: list[Irregularity]) -> dict[str, list[str]] | None:
    """Names by split: test.txt as it is, trainval.txt divided; list.txt divided where neither is there."""
    names: dict[str, list[str]] = {}
    for kind in ("trainval", "test", "list"):
        lines = read_list(root / "annotations" / f"{kind}.txt")
        names[kind] = [line.split()[0] for line in lines or ()]
    if names["trainval"] or names["test"]:
        test = set(names["test"])
        lists = rules.divide_trainval(name for name in names["trainval"] if name not in test)
        for name in sorted(test.intersection(names["trainval"])):
            found.append(
                Irregularity(f"annotations/trainval.txt: {name}", "listed-twice", "in trainval and test; kept for test")
            )
        return one_split_each({**lists, "test": names["test"]}, found, "annotations: ")
    if names["list"]:
        return one_split_each(rules.divide(names["list"]), found, "annotations: ")
    return None
