"""Trimaps of Oxford-IIIT Pet, and object masks as small PNGs.

A mask is stored as a 1-bit PNG with a palette of (0, 0, 0) and (1, 1, 1). `tf.io.decode_png(channels=1)` makes 0 and 1
of it, as official.vision's mask targets need (from a 1-bit grey PNG it makes 0 and 255), Pillow makes the indices 0 and
1 of it, and at one bit a pixel it takes a fraction of the time of an 8-bit PNG to compress.
"""

import functools
import struct
import zlib
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from isal import igzip_lib, isal_zlib

from mlcore.data.boxes import Box
from mlcore.data.images import MAX_PIXELS, ImageError, Png, decode, read_png

if TYPE_CHECKING:
    from numpy.typing import NDArray

BACKGROUND = 2  # 1 is the pet, 3 its border, which counts as pet

_LEVEL = 1
_PALETTE = b"\0\0\0\1\1\1"
_STORED_BYTES = 65_535  # of one stored block of deflate


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
    canvas = _Canvas(width, height)
    canvas.pixels[:] = pixels
    return canvas.mask(0)


class _Canvas:
    """Pixels of one byte in lines as a packed mask has them: eight more at the left, and then whole bytes.

    So all of them are compared and packed in one piece, a third of the time that numpy takes line by line.
    """

    def __init__(self, width: int, height: int, fill: int = 0) -> None:
        self.width, self.height = width, height
        self.stride = 8 + -(-width // 8) * 8
        self._memory = np.full(height * self.stride + 8, fill, np.uint8)
        self._lines = self._memory[:-8].reshape(height, self.stride)

    @property
    def pixels(self) -> "NDArray[np.uint8]":
        """The pixels, shape (height, width)."""
        return self._lines[:, 8 : 8 + self.width]

    def undo_filters(self, stream: bytes) -> None:
        """Write a PNG's pixels on it: the lines with their filters, as a zlib stream.

        Raises:
            ValueError: Not so many pixels are in it.
        """
        from PIL import Image

        size = self.width, self.height
        image = Image.frombuffer("L", size, self._memory[8:], "raw", "L", self.stride, 1)
        image.frombytes(stream, "zip", "L")

    def mask(self, background: int) -> Mask:
        """What is not background. The pixels are gone after it."""
        values = np.not_equal(self._lines, background, out=self._lines.view(np.bool_))
        return Mask(self.width, np.packbits(values).reshape(self.height, -1))


@functools.cache
def _pillow_writes_on_memory() -> bool:
    """Whether Pillow decodes into memory that an image was made on. It does, but does not promise to."""
    canvas = _Canvas(3, 1)
    canvas.undo_filters(zlib.compress(b"\0\1\2\3"))
    return canvas.pixels.tolist() == [[1, 2, 3]]


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
    mask = _read_plain(data, png) if png.bits == 8 and not png.interlaced and _pillow_writes_on_memory() else None
    return pack_mask(np.asarray(decode(data, ("PNG",))) != BACKGROUND) if mask is None else mask


def _read_plain(data: bytes, png: Png) -> Mask | None:
    """What is not background in a PNG of one byte a pixel that is not interlaced; None where Pillow has to say what is
    wrong with it.

    Pillow has zlib inflate line by line, which is slow. Here isal inflates the whole, and Pillow gets it in stored
    blocks (RFC 1951, section 3.2.4), to undo the filters of the lines where the pixels are wanted: three quarters of
    the time.
    """
    size = png.height * (1 + png.width)
    if not 0 < size <= MAX_PIXELS:
        return None
    packed = b"".join(data[part] for part in png.pixels)
    try:
        raw = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_ZLIB).decompress(packed, size + 1)
        if len(raw) != size:
            return None
        view = memoryview(raw)
        parts: list[bytes | memoryview] = [b"\x78\x01"]
        for start in range(0, size, _STORED_BYTES):
            block = view[start : start + _STORED_BYTES]
            last = start + _STORED_BYTES >= size
            parts += (struct.pack("<BHH", last, len(block), len(block) ^ 0xFFFF), block)
        parts.append(packed[-4:])  # the checksum of the pixels ends the stream
        canvas = _Canvas(png.width, png.height, BACKGROUND)
        canvas.undo_filters(b"".join(parts))
        return canvas.mask(BACKGROUND)
    except (igzip_lib.IsalError, ValueError):  # type: ignore[misc]  # the stub says an instance
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
