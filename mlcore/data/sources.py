"""What `convert` reads: a raw data set as a list of items, one for each image that is to become a record."""

import errno
import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

from mlcore.data import splits
from mlcore.data.images import EXTENSIONS
from mlcore.data.irregularities import Irregularity
from mlcore.runtime.outputs import SUCCESS, read_success


class Item(NamedTuple):
    """One image that is to become a record.

    Attributes:
        name: Path of the image without its extension, below the images' folder; the identity of the item.
        image: Its file, relative to the data set's root.
        annotation: Its XML or trimap, relative to the root.
        label: Its class, where the file name tells it; empty where the annotation does.
    """

    name: str
    image: str
    annotation: str
    label: str = ""


@dataclass(frozen=True)
class Source:
    """A raw data set.

    Attributes:
        layout: voc or pets.
        annotations: What the annotations are: VOC XML, or trimaps of Pets.
        root: Its folder; all file names are relative to it.
        items: Split name -> its items.
        found: What was wrong with lists and file names. Items that were rejected here are not in `items`.
        rejected: Items that were rejected here.
        digest: SHA-256 over the names, sizes and times of all files that count.
    """

    layout: str
    annotations: Literal["xml", "trimap"]
    root: Path
    items: Mapping[str, Sequence[Item]]
    found: Sequence[Irregularity]
    rejected: int
    digest: str


@dataclass
class Folder:
    """The files below a folder, hidden ones left out.

    Attributes:
        prefix: The folder's name relative to the root, with a slash at its end.
        files: Name relative to the folder -> (size, time of change in ns).
    """

    prefix: str
    files: dict[str, tuple[int, int]] = field(default_factory=dict)

    @classmethod
    def read(cls, root: Path, name: str, *, deep: bool = True) -> "Folder":
        """List `root`/`name`, with all folders below it unless told otherwise; empty where there is none."""
        folder = cls(f"{name}/" if name else "")
        _walk(os.fspath(root / name), "", folder.files, deep)
        return folder

    def by_stem(self, extensions: Iterable[str]) -> dict[str, list[str]]:
        """Name without extension -> the files of that name, the best extension first."""
        order = {extension: rank for rank, extension in enumerate(extensions)}
        stems: dict[str, list[str]] = {}
        for name in sorted(self.files):
            stem, extension = split_extension(name)
            if extension.lower() in order:
                stems.setdefault(stem, []).append(name)
        for names in stems.values():
            if len(names) > 1:
                names.sort(key=lambda name: (order[split_extension(name)[1].lower()], name))
        return stems


def _walk(path: str, prefix: str, files: dict[str, tuple[int, int]], deep: bool) -> None:
    try:
        entries = sorted(os.scandir(path), key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in entries:
        if entry.name.startswith("."):  # also macOS's ._* doubles, which the Pets archives hold
            continue
        try:
            if entry.is_dir():
                if deep and not _leads_back(entry) and not _is_converted(entry.path):
                    _walk(entry.path, f"{prefix}{entry.name}/", files, deep)
            elif entry.is_file():
                status = entry.stat()
                files[prefix + entry.name] = (status.st_size, status.st_mtime_ns)
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise


def _leads_back(entry: os.DirEntry[str]) -> bool:
    """Whether a folder is a link to one that it is in."""
    if not entry.is_symlink():
        return False
    target = os.path.realpath(entry.path)
    return f"{os.path.realpath(os.path.dirname(entry.path))}/".startswith(f"{target.rstrip('/')}/")  # noqa: PTH120


def _is_converted(path: str) -> bool:
    """Whether a folder holds records made by `convert`, which some keep within the raw data set."""
    if not os.path.lexists(f"{path}/{SUCCESS}"):
        return False
    record = read_success(Path(path))
    return record is not None and record.get("step") == "convert"


def digest_of(folders: Iterable[Folder]) -> str:
    """SHA-256 over the names, sizes and times of all files, so that a data set that changed is noticed cheaply."""
    sha256 = hashlib.sha256()
    for folder in folders:
        for name, (size, time_ns) in sorted(folder.files.items()):
            sha256.update(f"{folder.prefix}{name}\0{size}\0{time_ns}\n".encode(errors="surrogateescape"))
    return sha256.hexdigest()


def images_by_stem(images: Folder, found: list[Irregularity]) -> dict[str, str]:
    """Name without extension -> image file below the folder; notes what is no image and what is ambiguous."""
    chosen = {}
    stems = images.by_stem(EXTENSIONS)
    known = set()
    for stem, names in stems.items():
        chosen[stem] = names[0]
        known.update(names)
        if len(names) > 1:
            found.append(Irregularity(images.prefix + names[0], "image-ambiguous", f"also {', '.join(names[1:])}"))
    for name in images.files:
        if name not in known:
            found.append(Irregularity(images.prefix + name, "not-an-image"))
    return chosen


def read_list(path: Path) -> list[str] | None:
    """The lines of a list of images, without comments and empty ones; None where there is no such file."""
    try:
        text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    except (FileNotFoundError, IsADirectoryError):
        return None
    return [line for raw in text.splitlines() if (line := raw.strip()) and not line.startswith("#")]


@dataclass(frozen=True)
class SplitRules:
    """How images without a list of their own are divided."""

    seed: int
    val_fraction: float
    test_fraction: float
    use_lists: bool

    def divide(self, names: Iterable[str]) -> dict[str, list[str]]:
        """Split name -> names, for a data set without lists."""
        return self._divide(names, self.test_fraction)

    def divide_trainval(self, names: Iterable[str]) -> dict[str, list[str]]:
        """Split name -> names, for a data set that lists test images apart: train and val."""
        return self._divide(names, 0.0)

    def _divide(self, names: Iterable[str], test_fraction: float) -> dict[str, list[str]]:
        divided: dict[str, list[str]] = {"train": [], "val": [], "test": []}
        for name in names:
            split = splits.split_of(name, seed=self.seed, val_fraction=self.val_fraction, test_fraction=test_fraction)
            divided[split].append(name)
        return divided


def one_split_each(lists: Mapping[str, Sequence[str]], found: list[Irregularity], prefix: str) -> dict[str, list[str]]:
    """Each name in one split only: test before val before train; a name twice in one list counts once."""
    home: dict[str, str] = {}
    for split in ("test", "val", "train"):
        for name in lists.get(split, ()):
            if home.setdefault(name, split) != split:
                detail = f"in {split} and {home[name]}; kept for {home[name]}"
                found.append(Irregularity(prefix + name, "listed-twice", detail))
    divided: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for name, split in home.items():
        divided[split].append(name)
    return divided


def split_extension(name: str) -> tuple[str, str]:
    """`a/b.tar.gz` -> (`a/b.tar`, `.gz`)."""
    return os.path.splitext(name)  # noqa: PTH122 - a hundredth of the time of a Path, for every file of a data set


def file_stem(name: str) -> str:
    """The last part of a path of any system (slashes or backslashes), without its extension."""
    return PurePosixPath(name.replace("\\", "/")).stem
