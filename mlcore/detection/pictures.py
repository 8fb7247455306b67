"""Finds pictures and reads them as a viewer shows them."""

import glob
import hashlib
import io
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from mlcore.runtime.errors import UsageError

if TYPE_CHECKING:
    import numpy.typing as npt
    from PIL import Image

log = logging.getLogger(__name__)

_ORIENTATION = 0x0112  # tag of EXIF
_NOT_PICTURES = ("BUFR", "GRIB", "HDF5", "MPEG", "WMF")  # Pillow knows their names but cannot decode them


@dataclass(frozen=True, order=True)
class Picture:
    """A file that should be a picture.

    Attributes:
        path: Where it is.
        name: Its path inside the folder that was given, with `/`; its own name where the file itself was given.
    """

    path: Path
    name: str


def find_pictures(inputs: Sequence[str], flag: str = "--input", *, output_dir: Path | None = None) -> list[Picture]:
    """The pictures that files, folders and globs name, each once, in a stable order.

    A folder gives the files in it, at any depth, whose ending is that of a format that Pillow reads. A file that is
    named, alone or by a glob, is taken whatever it is called. The results of an earlier run, in a folder `output_dir`
    within such a folder, are none of its pictures.

    Raises:
        UsageError: One of the inputs is or matches nothing, or there is no picture at all.
    """
    if not inputs:
        raise UsageError(f"{flag}: missing; expected a picture, a folder or a glob")
    found: dict[Path, Picture] = {}
    for text in inputs:
        # A file whose real name has a bracket in it is that file.
        matches = [text] if Path(text).exists() else sorted(glob.glob(text, recursive=True))  # noqa: PTH207 (absolute patterns)
        if not matches:
            kind = "no match" if glob.has_magic(text) else "no such file or folder"
            raise UsageError(f"{flag}={text}: {kind}; expected a picture, a folder or a glob")
        for match in map(Path, matches):
            pictures = _pictures_in(match, output_dir) if match.is_dir() else [Picture(match, match.name)]
            for picture in pictures:
                found.setdefault(picture.path.resolve(), picture)
    if not found:
        raise UsageError(f"{flag}={inputs[0]}: no pictures in it; expected files such as .jpg or .png")
    return list(found.values())


def _pictures_in(folder: Path, output_dir: Path | None) -> list[Picture]:
    from PIL import Image

    kinds = set(Image.registered_extensions().items())
    endings = {ending for ending, kind in kinds if kind in Image.OPEN and kind not in _NOT_PICTURES}
    pictures = []
    left_out = os.path.realpath(output_dir) if output_dir else None
    for directory, folders, names in os.walk(folder):
        folders[:] = sorted(
            name for name in folders
            if not name.startswith(".") and os.path.realpath(f"{directory}/{name}") != left_out
        )  # fmt: skip
        for name in sorted(names):
            if Path(name).suffix.lower() in endings and not name.startswith("."):
                path = Path(directory, name)
                pictures.append(Picture(path, path.relative_to(folder).as_posix()))
    return pictures


def pictures_digest(pictures: Sequence[Picture]) -> str:
    """Changes when a picture is added, removed, renamed or written; its content is not read."""
    digest = hashlib.sha256()
    for picture in pictures:
        status = picture.path.stat()
        digest.update(f"{picture.name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def drawn_names(pictures: Sequence[Picture], ending: str = ".jpg") -> list[str]:
    """A name for each picture's copy with boxes: like its own, told apart by a number where two would be the same."""
    taken: set[str] = set()
    names = []
    for picture in pictures:
        stem = PurePosixPath(picture.name).with_suffix("")
        name, count = f"{stem}{ending}", 1
        while name.lower() in taken:  # some file systems ignore case
            count += 1
            name = f"{stem}-{count}{ending}"
        taken.add(name.lower())
        names.append(name)
    return names


@dataclass(frozen=True)
class Pixels:
    """A picture that was read.

    Attributes:
        rgb: uint8 of shape (height, width, 3), as a viewer shows it.
        encoded: The same as a file that TensorFlow decodes to the same size: the picture's own bytes where it can, else
            a BMP.
    """

    rgb: "npt.NDArray[np.uint8]"
    encoded: bytes


def read_picture(path: Path) -> Pixels:
    """Reads a picture of any format that Pillow knows.

    It is turned as its EXIF says; of an animation the first frame is taken. As in training, alpha is dropped and of 16
    bits the upper eight are taken.

    Raises:
        OSError: It cannot be read or is no picture; the message says which.
    """
    from PIL import Image

    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            rgb = as_rgb(image)
            if image.format in ("JPEG", "PNG") and image.mode in ("L", "RGB") and _is_upright(image):
                return Pixels(np.asarray(rgb), content)
    except Exception as error:  # decoders raise whatever a damaged file leads them to
        raise OSError(_reason(error)) from error
    buffer = io.BytesIO()
    rgb.save(buffer, "BMP")  # nothing is lost and little time
    return Pixels(np.asarray(rgb), buffer.getvalue())


def _is_upright(image: "Image.Image") -> bool:
    return image.getexif().get(_ORIENTATION, 1) in (0, 1)


def _reason(error: Exception) -> str:
    from PIL import UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):
        return "not a picture that Pillow reads"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def as_rgb(image: "Image.Image") -> "Image.Image":
    """An image of any mode as RGB, the way a viewer shows it."""
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_eight_bits(np.asarray(image))).convert("RGB")
    if image.mode in ("RGBa", "La"):  # colours multiplied by alpha, which Pillow converts in two steps alone
        image = image.convert("RGBA" if image.mode == "RGBa" else "LA")
    return image.convert("RGB")


def _eight_bits(values: "npt.NDArray[Any]") -> "npt.NDArray[np.uint8]":
    """Grey values of 16 or 32 bits, or floats, as 8 bits."""
    if values.dtype.kind == "f":
        finite = np.nan_to_num(values.astype(np.float64), posinf=0.0, neginf=0.0)
        top = 255.0 if finite.max(initial=0.0) <= 1.0 else 1.0  # floats are 0..1 or 0..255 by custom
        return np.clip(np.rint(finite * top), 0, 255).astype(np.uint8)
    wide = values.astype(np.int64)
    sixteen = values.dtype.itemsize == 2 or wide.max(initial=0) > 255
    return np.clip(wide >> 8 if sixteen else wide, 0, 255).astype(np.uint8)
