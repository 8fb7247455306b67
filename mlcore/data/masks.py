"""Trimaps of Oxford-IIIT Pet, and object masks as small PNGs.

A mask is stored as a 1-bit PNG with a palette of (0, 0, 0) and (1, 1, 1). `tf.io.decode_png(channels=1)` makes 0 and 1
of it, as official.vision's mask targets need (from a 1-bit grey PNG it makes 0 and 255), Pillow makes the indices 0 and
1 of it, and at one bit a pixel it takes a fraction of the time of an 8-bit PNG to compress.
"""

import struct
import zlib
from typing import TYPE_CHECKING

import numpy as np
from isal import isal_zlib

from mlcore.data.boxes import Box
from mlcore.data.images import ImageError, decode, read_png

if TYPE_CHECKING:
    from numpy.typing import NDArray

BACKGROUND = 2  # 1 is the pet, 3 its border, which counts as pet

_LEVEL = 1
_PALETTE = b"\0\0\0\1\1\1"


def read_trimap(data: bytes) -> "NDArray[np.bool_]":
    """What is not background in a trimap, of shape (height, width).

    Raises:
        ImageError: It cannot be decoded, or its pixels are no single numbers.
    """
    png = read_png(data)
    if (png.colour, png.bits) != (0, 8) and png.colour != 3:
        raise ImageError(
            f"pixels of PNG colour type {png.colour} with {png.bits} bits; expected grey of 8, or a palette"
        )
    return np.asarray(decode(data, ("PNG",))) != BACKGROUND


def bounding_box(mask: "NDArray[np.bool_]") -> tuple[Box | None, float]:
    """The tightest box around a mask, in pixel edges, and the mask's area in pixels; no box where it is empty."""
    columns = np.flatnonzero(mask.any(axis=0))
    if not len(columns):
        return None, 0.0
    rows = np.flatnonzero(mask.any(axis=1))
    box = Box(float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))
    return box, float(np.count_nonzero(mask))


def encode_mask(mask: "NDArray[np.bool_]") -> bytes:
    """A mask of shape (height, width) as a PNG whose pixels are 0 and 1."""
    height, width = mask.shape
    lines = np.zeros((height, 1 + (width + 7) // 8), np.uint8)  # byte 0 of a line is its filter: none
    lines[:, 1:] = np.packbits(mask, axis=1)
    header = struct.pack(">IIBBBBB", width, height, 1, 3, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        (
            _chunk(b"IHDR", header),
            _chunk(b"PLTE", _PALETTE),
            _chunk(b"IDAT", isal_zlib.compress(lines, _LEVEL)),
            _chunk(b"IEND", b""),
        )
    )


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(body, zlib.crc32(kind)))
