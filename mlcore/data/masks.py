"""Trimaps of Oxford-IIIT Pet, and object masks as small PNGs.

A mask is stored as a 1-bit PNG with a palette of (0, 0, 0) and (1, 1, 1). `tf.io.decode_png(channels=1)` makes 0 and 1
of it, as official.vision's mask targets need (from a 1-bit grey PNG it makes 0 and 255), Pillow makes the indices 0 and
1 of it, and at one bit a pixel it takes a fraction of the time of an 8-bit PNG to compress.
"""

import struct
import zlib
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from isal import igzip_lib, isal_zlib
from kornia_rs.io import decode_image_png_u8

from mlcore.data.boxes import Box
from mlcore.data.images import MAX_PIXELS, ImageError, Png, decode, read_png

if TYPE_CHECKING:
    from numpy.typing import NDArray

BACKGROUND = 2  # 1 is the pet, 3 its border, which counts as pet

_LEVEL = 1
_PALETTE = b"\0\0\0\1\1\1"


class Mask(NamedTuple):
    """Which pixels an object has.

    Attributes:
        width: Pixels of a line.
        lines: One bit for each pixel, the leftmost first, shape (height, 1 + bytes of a line). Byte 0 of a line is 0:
            so lines are stored in a PNG, where it is the line's filter, none.
    """

    width: int
    lines: "NDArray[np.uint8]"

    @property
    def height(self) -> int:
        """Number of lines."""
        return len(self.lines)


def pack_mask(pixels: "NDArray[np.bool_]") -> Mask:
    """A mask from one truth value for each pixel, shape (height, width)."""
    height, width = pixels.shape
    # Lines as a packed mask has them, eight pixels more at the left and then whole bytes: so all of them are packed in
    # one piece, half of the time that numpy takes line by line.
    lines = np.zeros((height, 8 + -(-width // 8) * 8), np.bool_)
    lines[:, 8 : 8 + width] = pixels
    return Mask(width, np.packbits(lines).reshape(height, -1))


def read_trimap(data: bytes) -> Mask:
    """What is not background in a trimap.

    Raises:
        ImageError: It cannot be decoded, or its pixels are no single numbers.
    """
    png = read_png(data)
    if (png.colour, png.bits) != (0, 8) and png.colour != 3:
        raise ImageError(
            f"pixels of PNG colour type {png.colour} with {png.bits} bits; expected grey of 8, or a palette"
        )
    pixels = _decode_bytes(data, png)
    return pack_mask((np.asarray(decode(data, ("PNG",))) if pixels is None else pixels) != BACKGROUND)


def _decode_bytes(data: bytes, png: Png) -> "NDArray[np.uint8] | None":
    """The pixels of a PNG of one byte a pixel, in less than half of Pillow's time; None where Pillow has to read it, or
    has to say what is wrong with it.
    """
    size = png.height * (1 + png.width)  # in seven passes (interlaced) it is another
    if png.bits != 8 or not 0 < size <= MAX_PIXELS:
        return None
    try:
        # kornia-rs does not look at the checksum of the pixels; isal does, at the end of the stream.
        inflater = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_ZLIB)
        if len(inflater.decompress(b"".join(data[part] for part in png.pixels), size + 1)) != size or not inflater.eof:
            return None
        return decode_image_png_u8(data, (png.height, png.width), "mono")[:, :, 0]
    except Exception:  # kornia-rs raises nothing narrower
        return None


def bounding_box(mask: Mask) -> tuple[Box | None, float]:
    """The tightest box around a mask, in pixel edges, and the mask's area in pixels; no box where it is empty."""
    bits = mask.lines[:, 1:]
    columns = np.flatnonzero(np.unpackbits(np.bitwise_or.reduce(bits, axis=0)))
    if not len(columns):
        return None, 0.0
    rows = np.flatnonzero(mask.lines.any(axis=1))
    box = Box(float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))
    return box, float(_count_bits(mask.lines.reshape(-1)))


def _count_bits(data: "NDArray[np.uint8]") -> int:
    """How many bits are 1, eight bytes at a time."""
    whole = len(data) // 8 * 8
    parts = np.bitwise_count(data[:whole].view(np.uint64)), np.bitwise_count(data[whole:])
    return sum(int(part.sum(dtype=np.int64)) for part in parts)


def encode_mask(mask: Mask) -> bytes:
    """A mask as a PNG whose pixels are 0 and 1."""
    header = struct.pack(">IIBBBBB", mask.width, mask.height, 1, 3, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        (
            _chunk(b"IHDR", header),
            _chunk(b"PLTE", _PALETTE),
            _chunk(b"IDAT", isal_zlib.compress(mask.lines, _LEVEL)),
            _chunk(b"IEND", b""),
        )
    )


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(body, zlib.crc32(kind)))
