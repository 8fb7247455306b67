"""MNIST and sets made in its likeness: four IDX files, and the arrays that `mnist-download` makes of them.

    <output_dir>/<version>/train/imgs.npz     imgs: uint8 (n, rows, columns), 0 black to 255 white
    <output_dir>/<version>/train/labels.npz   labels: uint8 (n,)
    <output_dir>/<version>/t10k/...           the same for the test part
    <output_dir>/<version>/classes.txt        one name a line, in the order of the labels
    <output_dir>/downloads/<set>/             the files as they came

The version is a digest of the arrays, so that it names the data and not the way it came.
"""

import hashlib
import logging
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np

from mlcore.data.idx import Array, read_images, read_labels
from mlcore.runtime.errors import DataError, UsageError
from mlcore.runtime.outputs import OutputDirectory, read_success
from mlcore.runtime.parameters import Environment, Range, step

log = logging.getLogger(__name__)

STEP = "mnist-download"
PARTS = ("train", "t10k")
FILES = {part: (f"{part}-images-idx3-ubyte.gz", f"{part}-labels-idx1-ubyte.gz") for part in PARTS}
FILE_NAMES = tuple(name for part in PARTS for name in FILES[part])
CLASSES = "classes.txt"
DIGITS = tuple(map(str, range(10)))
_CLASS_NAMES = {
    "mnist": DIGITS,
    "fashion-mnist": (
        "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
    ),
}  # fmt: skip
_VERSION_DIGITS = 12


@dataclass(frozen=True)
class Examples:
    """Images and their labels.

    Attributes:
        imgs: uint8 of shape (n, rows, columns).
        labels: uint8 of shape (n,).
    """

    imgs: Array
    labels: Array

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, part: slice) -> "Examples":
        return Examples(self.imgs[part], self.labels[part])


@dataclass(frozen=True)
class MnistData:
    """A whole data set.

    Attributes:
        train: Examples to learn from.
        t10k: Examples to test with.
        classes: Names of the classes, in the order of the labels.
        version: Digest of the arrays: 12 hexadecimal digits.
    """

    train: Examples
    t10k: Examples
    classes: tuple[str, ...]
    version: str


@dataclass(frozen=True)
class MnistDownloadResult:
    """What `mnist-download` made.

    Attributes:
        data_dir: Directory of this version of the data.
        version: Name of the version: a digest of the arrays.
        train: Examples to learn from.
        t10k: Examples to test with.
        classes: Number of classes.
    """

    data_dir: Path
    version: str
    train: int
    t10k: int
    classes: int


@step
def mnist_download(
    *,
    output_dir: Annotated[Path, Environment(("MNIST_DATA_DIR",))],
    dataset: Literal["mnist", "fashion-mnist"] = "mnist",
    mirror: tuple[str, ...] = (),
    url: str | None = None,
    sha256: tuple[str, ...] = (),
    retries: Annotated[int, Range(min=0)] = 5,
    connect_timeout_s: Annotated[float, Range(min=0.1)] = 20,
    stall_timeout_s: Annotated[float, Range(min=0.1)] = 60,
    backoff_s: Annotated[float, Range(min=0)] = 1,
    overwrite: bool = False,
) -> MnistDownloadResult:
    """Download MNIST, Fashion-MNIST or another set of IDX files, check it and store it as numpy arrays.

    The arrays, {train,t10k}/{imgs,labels}.npz, are stored in a directory of --output-dir that is named after a digest
    of the data. Several versions can stand side by side; one that is there is not made again.

    Args:
        output_dir: Directory for the versions of the data, and for the files as they came (in downloads/).
        dataset: Known data set; its addresses and digests are built in.
        mirror: Base address that has the files of the known data set; tried before its own addresses.
        url: Base address of another set in the same format, instead of --dataset: four files, gzipped, with the names
            of MNIST's (train-images-idx3-ubyte.gz, ...).
        sha256: With --url, the digests of the four files in the order train images, train labels, t10k images, t10k
            labels; - where none is known.
        retries: Failures in a row after which an address is given up.
        connect_timeout_s: Longest wait for a connection, in seconds.
        stall_timeout_s: Longest time without a byte before the connection counts as broken, in seconds.
        backoff_s: First wait after a failure, in seconds; it doubles with each.
        overwrite: Replace downloaded files that differ from what is asked for.

    Returns:
        The directory of the arrays, their version and counts.

    Raises:
        UsageError: A wrong address or digest, or the directory cannot be written.
        DataError: A file is damaged, not what its name says, or does not fit the others.
        TransientError: No answer after the last retry.
    """
    from mlcore.data.datasets import DATASETS
    from mlcore.data.download import download

    if url is None and sha256:
        raise UsageError("--sha256 is given without --url; the digests of --dataset are built in")
    if url is not None and mirror:
        raise UsageError("--mirror is given with --url; it is for --dataset only")
    if url is None:
        known = {file.name: f"sha256:{file.digest.hex}" for file in DATASETS[dataset] if file.digest}
        if (done := _find_version(output_dir, known)) is not None:
            return done
    downloads = output_dir / "downloads" / (dataset if url is None else "other")
    download(
        output_dir=downloads,
        dataset=dataset if url is None else None,
        mirror=mirror,
        url=() if url is None else tuple(f"{url.rstrip('/')}/{name}" for name in FILE_NAMES),
        sha256=sha256,
        retries=retries,
        connect_timeout_s=connect_timeout_s,
        stall_timeout_s=stall_timeout_s,
        backoff_s=backoff_s,
        overwrite=overwrite,
    )
    record = read_success(downloads)
    assert record is not None
    inputs = {name: record["inputs"][name] for name in FILE_NAMES}
    if (done := _find_version(output_dir, inputs)) is not None:
        return done
    data = _read_files(downloads, _CLASS_NAMES[dataset] if url is None else None)
    return _write(data, output_dir, inputs)


def _find_version(output_dir: Path, inputs: Mapping[str, str]) -> MnistDownloadResult | None:
    """The version that was made of these files, or None."""
    for directory in _versions(output_dir):
        record = read_success(directory)
        if record is not None and record.get("step") == STEP and record.get("inputs") == inputs:
            log.info("%s is up to date", directory)
            return MnistDownloadResult(data_dir=directory, **record["results"])
    return None


def _write(data: MnistData, output_dir: Path, inputs: Mapping[str, str]) -> MnistDownloadResult:
    # The name is a digest of the content: a directory of this name with other inputs (gzipped otherwise) holds the same
    # arrays, and is replaced by them.
    output = OutputDirectory(output_dir / data.version, step=STEP, parameters={}, inputs=inputs, overwrite=True)
    output.results = {
        "version": data.version,
        "train": len(data.train),
        "t10k": len(data.t10k),
        "classes": len(data.classes),
    }
    with output.writing() as directory:
        for part, examples in (("train", data.train), ("t10k", data.t10k)):
            (directory / part).mkdir()
            np.savez(directory / part / "imgs.npz", imgs=examples.imgs)
            np.savez(directory / part / "labels.npz", labels=examples.labels)
        (directory / CLASSES).write_text("".join(f"{name}\n" for name in data.classes))
    return MnistDownloadResult(data_dir=output.path, **output.results)


def load_mnist(data_dir: Path, flag: str = "--data-dir") -> MnistData:
    """A data set from the four IDX files, or from the arrays of `mnist-download`.

    Args:
        data_dir: Directory of the four files, gzipped or not, or of the arrays, or the one above the arrays if it
            holds a single version. A file classes.txt beside them names the classes.
        flag: How the directory was given, for messages.

    Raises:
        UsageError: There is no data set in it, or more than one.
        DataError: A file is damaged, or does not fit the others.
    """
    if not data_dir.is_dir():
        raise UsageError(f"{flag}={data_dir}: no such directory")
    if (data_dir / "train" / "imgs.npz").is_file():
        return _read_arrays(data_dir)
    if _idx_file(data_dir, FILES["train"][0]).is_file():
        return _read_files(data_dir, None)
    versions = _versions(data_dir)
    if len(versions) > 1:
        names = ", ".join(directory.name for directory in versions)
        raise UsageError(f"{flag}={data_dir}: holds several versions of the data ({names}); give the directory of one")
    if not versions:
        raise UsageError(
            f"{flag}={data_dir}: expected train/imgs.npz (as mlcore mnist-download makes it) or {FILES['train'][0]}"
        )
    return _read_arrays(versions[0])


def _versions(directory: Path) -> list[Path]:
    if not directory.is_dir():
        return []
    entries = sorted(entry for entry in directory.iterdir() if not entry.name.startswith("."))
    return [entry for entry in entries if (entry / "train" / "imgs.npz").is_file()]


def _idx_file(directory: Path, name: str) -> Path:
    """The gzipped file, or the plain one where only that is there."""
    plain = directory / name.removesuffix(".gz")
    return plain if plain.is_file() and not (directory / name).is_file() else directory / name


def _read_files(directory: Path, classes: Sequence[str] | None) -> MnistData:
    parts = []
    for part in PARTS:
        paths = [_idx_file(directory, name) for name in FILES[part]]
        for path in paths:
            if not path.is_file():
                raise UsageError(f"{path}: no such file; expected the four files {', '.join(FILE_NAMES)}")
        parts.append(_checked(read_images(paths[0]), read_labels(paths[1]), *paths))
    return _whole(parts[0], parts[1], directory, classes)


def _read_arrays(directory: Path) -> MnistData:
    parts = []
    for part in PARTS:
        paths = directory / part / "imgs.npz", directory / part / "labels.npz"
        imgs, labels = _load_array(paths[0], "imgs"), _load_array(paths[1], "labels")
        if imgs.ndim == 4 and imgs.shape[3] == 1:
            imgs = imgs[..., 0]
        if imgs.ndim != 3:
            raise DataError(f"{paths[0]}: imgs has the shape {imgs.shape}, expected (count, rows, columns)")
        if labels.ndim != 1:
            raise DataError(f"{paths[1]}: labels has the shape {labels.shape}, expected (count,)")
        parts.append(_checked(imgs, labels, *paths))
    record = read_success(directory)
    version = record["results"]["version"] if record is not None and record.get("step") == STEP else None
    return _whole(parts[0], parts[1], directory, None, version)


def _load_array(path: Path, name: str) -> Array:
    try:
        with np.load(path, allow_pickle=False) as archive:
            array = archive[name]
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; expected the array {name}") from error
    except KeyError as error:
        raise DataError(f"{path}: holds no array {name}") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: cannot be read as .npz ({error})") from error
    if array.dtype != np.uint8:
        raise DataError(f"{path}: {name} is {array.dtype}, expected uint8")
    return array


def _checked(imgs: Array, labels: Array, imgs_path: Path, labels_path: Path) -> Examples:
    if len(imgs) != len(labels):
        raise DataError(f"{labels_path}: count is {len(labels):,}, expected {len(imgs):,} as in {imgs_path.name}")
    return Examples(imgs, labels)


def _whole(
    train: Examples, t10k: Examples, directory: Path, classes: Sequence[str] | None, version: str | None = None
) -> MnistData:
    """The data set of two parts that fit each other."""
    if train.imgs.shape[1:] != t10k.imgs.shape[1:]:
        sizes = ["x".join(map(str, part.imgs.shape[1:])) for part in (t10k, train)]
        raise DataError(f"{directory}: the images of t10k are {sizes[0]}, those of train {sizes[1]}; expected one size")
    highest = int(max(train.labels.max(), t10k.labels.max()))
    listed = directory / CLASSES
    if classes is None and listed.is_file():
        classes = [line.strip() for line in listed.read_text().splitlines() if line.strip()]
    if classes is None:
        classes = DIGITS if highest < len(DIGITS) else tuple(map(str, range(highest + 1)))
    if highest >= len(classes):
        raise DataError(
            f"{directory}: label {highest} occurs, expected 0 to {len(classes) - 1} ({len(classes)} classes)"
        )
    return MnistData(train, t10k, tuple(classes), version or _digest(train, t10k))


def _digest(*parts: Examples) -> str:
    digest = hashlib.sha256()
    for part in parts:
        for array in (part.imgs, part.labels):
            digest.update(repr(array.shape).encode())
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:_VERSION_DIGITS]
