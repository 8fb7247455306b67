"""What an image file really is: format, size, colours and orientation, from its own first bytes.

Training reads images with `tf.io.decode_image(..., channels=3)`, which knows JPEG and PNG well, ignores EXIF and fails
on a JPEG that is cut off. So most files are checked here by their headers alone (a few microseconds against
milliseconds for decoding) and stored as they are; the others are decoded by Pillow and stored anew.
"""

import io
import re
import struct
import zlib
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from PIL import Image

EXTENSIONS = {
    ".jpg": "jpeg", ".jpeg": "jpeg", ".jpe": "jpeg", ".jfif": "jpeg", ".png": "png", ".gif": "gif", ".bmp": "bmp",
    ".tif": "tiff", ".tiff": "tiff", ".webp": "webp",
}  # fmt: skip
MAX_PIXELS = 178_956_970  # Pillow's own bound against decompression bombs
JPEG_QUALITY = 95

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_U16 = struct.Struct(">H")
_SOF = struct.Struct(">BHHB")  # precision, height, width, components
_IHDR = struct.Struct(">IIBBBBB")
_NO_LENGTH = frozenset((0x01, *range(0xD0, 0xD9)))  # TEM, RSTn, SOI: markers without a body
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOFn without DHT, JPG and DAC
_PLAIN_FRAMES = frozenset((0xC0, 0xC1, 0xC2))  # baseline, extended, progressive: what every decoder reads
_UPRIGHT_FORMATS = ("tiff",)  # of which Pillow turns the pixels itself when it reads them
_FILL = re.compile(rb"\xff+")


class ImageError(Exception):
    """The bytes are no image that can be used; the message says why."""


class Header(NamedTuple):
    """What an image says of itself.

    Attributes:
        format: jpeg, png, or what Pillow calls it in lower case (gif, bmp, tiff, webp, ...).
        width: Pixels as stored, before any EXIF rotation.
        height: Pixels as stored.
        channels: 1 for grey, 3 for colour (also behind a palette), 2 and 4 with alpha; CMYK has 4.
        orientation: EXIF orientation, 1 to 8; 1 is upright.
        problem: Rule of `irregularities` for which it must be stored anew, or empty.
    """

    format: str
    width: int
    height: int
    channels: int
    orientation: int = 1
    problem: str = ""

    @property
    def upright_size(self) -> tuple[int, int]:
        """Width and height once the EXIF orientation is applied."""
        return (self.height, self.width) if self.orientation >= 5 else (self.width, self.height)


def read_header(data: bytes) -> Header:
    """The header of an image.

    A JPEG must have its end marker and a PNG correct checksums in all of its chunks. A JPEG whose pixels are damaged in
    the middle is not found: decoders show it, with wrong pixels, and training goes on. What they refuse is found by
    `decode`.

    Raises:
        ImageError: It is no image, or cut off, or larger than `MAX_PIXELS`.
    """
    if data[:3] == b"\xff\xd8\xff":
        header = _read_jpeg(data)
    elif data[:8] == _PNG_SIGNATURE:
        header = _read_png(data)
    else:
        header = _read_other(data)
    if header.width < 1 or header.height < 1:
        raise ImageError(f"{header.format} of {header.width}x{header.height} pixels")
    if header.width * header.height > MAX_PIXELS:
        raise ImageError(f"{header.width}x{header.height} pixels; at most {MAX_PIXELS:,} are read")
    return header


def _read_jpeg(data: bytes) -> Header:
    position, end = 2, len(data)
    frame: tuple[int, int, int, int] | None = None
    kind = 0
    orientation = 1
    try:
        while True:
            if data[position] != 0xFF:
                raise ImageError(f"JPEG with no marker at byte {position}")
            marker = data[position + 1]
            if marker == 0xFF:  # fill bytes
                match = _FILL.match(data, position)
                position = match.end() - 1 if match else end
                continue
            position += 2
            if marker in _NO_LENGTH:
                continue
            length = _U16.unpack_from(data, position)[0]
            if marker in _FRAMES:
                frame, kind = _SOF.unpack_from(data, position + 2), marker
            elif marker == 0xE1 and data[position + 2 : position + 8] == b"Exif\0\0":
                orientation = exif_orientation(data[position + 8 : position + length])
            elif marker == 0xDA:
                break
            elif marker == 0xD9:
                raise ImageError("JPEG without image data")
            position += length
    except (IndexError, struct.error) as error:
        raise ImageError("JPEG cut off in its header") from error
    if frame is None:
        raise ImageError("JPEG without a frame header")
    precision, height, width, components = frame
    if data.rfind(b"\xff\xd9", position) < 0:
        raise ImageError("JPEG cut off: no end marker after its pixels")
    plain = kind in _PLAIN_FRAMES and precision == 8 and components in (1, 3)
    return Header("jpeg", width, height, components, orientation, "" if plain else "image-colours")


def exif_orientation(tiff: bytes) -> int:
    """The orientation (tag 0x0112 of the first directory) of an EXIF block; 1 where there is none or it is damaged."""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(f"{order}I", tiff, 4)
        (count,) = struct.unpack_from(f"{order}H", tiff, start)
        for entry in range(count):
            tag, kind, number, value = struct.unpack_from(f"{order}HHIH", tiff, start + 2 + 12 * entry)
            if tag == 0x0112:
                return value if kind == 3 and number == 1 and 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1


class Png(NamedTuple):
    """The chunks of a PNG, as far as they are used here (https://www.w3.org/TR/png-3/, section 11).

    Attributes:
        width: Pixels of a line.
        height: Lines.
        bits: Of a sample.
        colour: Colour type: 0 grey, 2 RGB, 3 palette, 4 and 6 with alpha.
        orientation: Of its EXIF block, 1 to 8.
        pixels: Where its compressed pixels are in the file, in order (IDAT).
    """

    width: int
    height: int
    bits: int
    colour: int
    orientation: int
    pixels: list[slice]


def read_png(data: bytes) -> Png:
    """Walks over all chunks of a PNG and checks each checksum: the only cheap way to find a damaged one.

    Raises:
        ImageError: It is no PNG, damaged or cut off.
    """
    position, orientation, ihdr, ended = 8, 1, None, False
    pixels: list[slice] = []
    view = memoryview(data)
    while position + 12 <= len(data):
        length = int.from_bytes(view[position : position + 4], "big")
        kind = data[position + 4 : position + 8]
        if position + 12 + length > len(data):
            break
        body_end = position + 8 + length
        if zlib.crc32(view[position + 4 : body_end]) != int.from_bytes(view[body_end : body_end + 4], "big"):
            raise ImageError(f"PNG with a wrong checksum at byte {position}")
        if kind == b"IDAT":
            pixels.append(slice(position + 8, body_end))
        elif kind == b"IHDR" and length == 13:
            ihdr = _IHDR.unpack_from(data, position + 8)
        elif kind == b"eXIf":
            orientation = exif_orientation(data[position + 8 : body_end])
        elif kind == b"IEND":
            ended = True
            break
        position = body_end + 4
    if ihdr is None or data[:8] != _PNG_SIGNATURE:
        raise ImageError("PNG without a header")
    if not ended:
        raise ImageError("PNG cut off")
    width, height, bits, colour, _, _, _ = ihdr
    return Png(width, height, bits, colour, orientation, pixels)


def _read_png(data: bytes) -> Header:
    png = read_png(data)
    channels = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}.get(png.colour)
    if channels is None:
        raise ImageError(f"PNG of colour type {png.colour}")
    problem = "image-colours" if png.bits == 16 else ""
    return Header("png", png.width, png.height, channels, png.orientation, problem)


def _read_other(data: bytes) -> Header:
    if not data:
        raise ImageError("an empty file")
    image = _open(data)
    try:
        orientation = exif_orientation(image.getexif().tobytes()[6:])
    except Exception as error:
        raise ImageError(f"{image.format} with damaged EXIF ({error})") from error
    channels = 3 if image.mode in ("P", "PA") else len(image.getbands())
    kind, width, height = str(image.format).lower(), image.width, image.height
    if kind in _UPRIGHT_FORMATS and orientation >= 5:
        width, height = height, width
    return Header(kind, width, height, channels, orientation, "image-format")


def _open(data: bytes, formats: tuple[str, ...] | None = None) -> "Image.Image":
    from PIL import Image

    try:
        return Image.open(io.BytesIO(data), formats=formats)
    except Image.DecompressionBombError as error:
        raise ImageError(f"more than {MAX_PIXELS:,} pixels") from error
    except Exception as error:  # Pillow's readers raise whatever damage leads them to
        raise ImageError("of no known image format") from error


def decode(data: bytes, formats: tuple[str, ...] | None = None) -> "Image.Image":
    """All pixels of an image.

    Args:
        data: The file.
        formats: Formats to try, as Pillow calls them; None for all.

    Raises:
        ImageError: They cannot be decoded in full.
    """
    image = _open(data, formats)
    try:
        image.load()
    except Exception as error:
        raise ImageError(f"cannot be decoded: {error}") from error
    return image


def _as_stored(orientation: int) -> "Image.Transpose":
    """What undoes an EXIF orientation of 2 to 8 that was applied."""
    from PIL.Image import Transpose

    return (
        Transpose.FLIP_LEFT_RIGHT, Transpose.ROTATE_180, Transpose.FLIP_TOP_BOTTOM, Transpose.TRANSPOSE,
        Transpose.ROTATE_90, Transpose.TRANSVERSE, Transpose.ROTATE_270,
    )[orientation - 2]  # fmt: skip


def reencode(data: bytes, header: Header, *, upright: bool) -> tuple[bytes, Header]:
    """The image as an 8-bit grey or RGB JPEG or PNG that every decoder reads alike.

    What was lossy becomes a JPEG of quality 95 without colour subsampling, the rest a PNG. Of an animation the first
    frame is taken, of 16 bits the upper eight; alpha is dropped, as training decoders do.

    Args:
        data: The file.
        header: What `read_header` says of it.
        upright: Apply the EXIF orientation to the pixels.

    Returns:
        The new file and its header.

    Raises:
        ImageError: It cannot be decoded, or its pixels are no colours (such as 32-bit numbers).
    """
    from PIL import ImageOps

    image = decode(data)
    if header.format in _UPRIGHT_FORMATS:
        if not upright and header.orientation > 1:
            image = image.transpose(_as_stored(header.orientation))
    elif upright:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        import numpy as np
        from PIL import Image

        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ImageError(f"pixels of mode {image.mode}; expected colours of 8 or 16 bits")
    image = image.convert("L" if image.mode in ("1", "L", "LA", "La") else "RGB")
    image.info.clear()  # no EXIF, no profile: the pixels are final
    buffer = io.BytesIO()
    if header.format in ("jpeg", "webp", "mpo"):
        image.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    else:
        image.save(buffer, "PNG")
    fresh = buffer.getvalue()
    return fresh, read_header(fresh)
