"""IDX, the file format of MNIST and of the sets made in its likeness: a big-endian header, then bytes.

The header is a magic number (0x00000803 for images, 0x00000801 for labels: two zero bytes, 08 for unsigned bytes, the
number of dimensions) and one 32-bit length for each dimension (http://yann.lecun.com/exdb/mnist/).
"""

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import IO, cast

import numpy as np
import numpy.typing as npt

from mlcore.runtime.errors import DataError

Array = npt.NDArray[np.uint8]

_GZIP_MAGIC = b"\x1f\x8b"
_DIMENSIONS = {0x00000801: ("count",), 0x00000803: ("count", "rows", "columns")}
_NAMES = {0x00000801: "labels", 0x00000803: "images"}
_IMAGES, _LABELS = 0x00000803, 0x00000801


def read_images(path: Path) -> Array:
    """Images of an IDX file, gzipped or not, as an array of shape (count, rows, columns).

    Raises:
        DataError: The file is not a whole IDX file of images; the message names the field and what was expected.
    """
    return _read(path, _IMAGES)


def read_labels(path: Path) -> Array:
    """Labels of an IDX file, gzipped or not, as an array of shape (count,).

    Raises:
        DataError: The file is not a whole IDX file of labels; the message names the field and what was expected.
    """
    return _read(path, _LABELS)


def _read(path: Path, magic: int) -> Array:
    from isal import igzip, isal_zlib

    try:
        with path.open("rb") as raw:
            zipped = raw.read(2) == _GZIP_MAGIC
            raw.seek(0)
            if not zipped:
                return _parse(raw, path, magic)
            with cast(IO[bytes], igzip.open(raw, "rb")) as file:
                return _parse(file, path, magic)
    except (gzip.BadGzipFile, EOFError, zlib.error, isal_zlib.IsalError) as error:  # type: ignore[misc]
        raise DataError(f"{path}: its gzip data is damaged or cut off ({error})") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error


def _parse(file: IO[bytes], path: Path, magic: int) -> Array:
    names = _DIMENSIONS[magic]
    header = file.read(4)
    if len(header) < 4:
        raise DataError(f"{path}: cut off in its magic number, expected {magic:#010x} ({_NAMES[magic]})")
    found = int.from_bytes(header, "big")
    if found != magic:
        is_other = f" ({_NAMES[found]})" if found in _NAMES else ""
        raise DataError(f"{path}: magic number {found:#010x}{is_other}, expected {magic:#010x} ({_NAMES[magic]})")
    lengths = file.read(4 * len(names))
    if len(lengths) < 4 * len(names):
        raise DataError(f"{path}: cut off in its header, expected the lengths of {', '.join(names)}")
    shape = struct.unpack(f">{len(names)}I", lengths)
    for name, length in zip(names, shape, strict=True):
        if length == 0:
            raise DataError(f"{path}: {name} is 0, expected at least 1")
    size = math.prod(shape)
    # One byte more than the header says: nothing beyond it is read, however much a damaged file would unpack to.
    data = file.read(size + 1)
    if len(data) != size:
        much = f"{len(data):,}" if len(data) < size else "more"
        what = " x ".join(f"{length} {name}" for name, length in zip(names, shape, strict=True))
        raise DataError(f"{path}: {much} bytes of data, expected {size:,} ({what})")
    return np.frombuffer(data, np.uint8).reshape(shape)
