import io
import struct

import numpy as np
import pytest
from PIL import Image

from mlcore.data.images import ImageError, decode, exif_orientation, read_header, reencode


def picture(mode="RGB", size=(31, 17)):
    ramp = np.linspace(0, 255, size[0] * size[1]).reshape(size[1], size[0]).astype(np.uint8)
    return Image.fromarray(np.dstack([ramp, ramp[::-1], 255 - ramp])).convert(mode)


def saved(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def rotated(orientation, kind="JPEG", size=(31, 17)):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(picture(size=size), kind, exif=exif)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (saved(picture(), "JPEG"), ("jpeg", 31, 17, 3, 1, "")),
        (saved(picture(), "JPEG", progressive=True), ("jpeg", 31, 17, 3, 1, "")),
        (saved(picture("L"), "JPEG"), ("jpeg", 31, 17, 1, 1, "")),
        (saved(picture("CMYK"), "JPEG"), ("jpeg", 31, 17, 4, 1, "image-colours")),
        (saved(picture(), "JPEG") + b"trailing bytes", ("jpeg", 31, 17, 3, 1, "")),
        (rotated(6), ("jpeg", 31, 17, 3, 6, "")),
        (rotated(8, "PNG"), ("png", 31, 17, 3, 8, "")),
        (saved(picture(), "PNG"), ("png", 31, 17, 3, 1, "")),
        (saved(picture("P"), "PNG"), ("png", 31, 17, 3, 1, "")),
        (saved(picture("1"), "PNG"), ("png", 31, 17, 1, 1, "")),
        (saved(picture("LA"), "PNG"), ("png", 31, 17, 2, 1, "")),
        (saved(picture("RGBA"), "PNG"), ("png", 31, 17, 4, 1, "")),
        (saved(picture("I;16"), "PNG"), ("png", 31, 17, 1, 1, "image-colours")),
        (saved(picture("P"), "GIF"), ("gif", 31, 17, 3, 1, "image-format")),
        (saved(picture(), "BMP"), ("bmp", 31, 17, 3, 1, "image-format")),
        (saved(picture(), "TIFF"), ("tiff", 31, 17, 3, 1, "image-format")),
        (saved(picture(), "WEBP"), ("webp", 31, 17, 3, 1, "image-format")),
    ],
    ids=[
        "jpeg", "progressive", "grey jpeg", "cmyk", "trailing", "exif", "exif png", "png", "palette", "1 bit",
        "grey alpha", "rgba", "16 bit", "gif", "bmp", "tiff", "webp",
    ],
)  # fmt: skip
def test_the_header_tells_format_size_channels_and_orientation(data, expected):
    header = read_header(data)
    assert header == expected
    with Image.open(io.BytesIO(data)) as image:
        assert (header.width, header.height) == image.size


JPEG, PNG = saved(picture(), "JPEG"), saved(picture(), "PNG")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"text",
        JPEG[:20],
        JPEG[:200],
        PNG[:20],
        PNG[:-20],
        PNG[:60] + b"X" + PNG[61:],
        b"\xff\xd8\xff\xd9",
        PNG[:8],
    ],
    ids=["empty", "text", "jpeg 20", "jpeg 200", "png 20", "png cut", "png flipped", "jpeg bare", "png bare"],
)
def test_what_is_no_whole_image_is_refused_by_its_header(data):
    with pytest.raises(ImageError):
        read_header(data)


@pytest.mark.parametrize("kept", [0.5, 0.9, 0.999])
def test_a_jpeg_cut_in_its_pixels_is_refused_though_its_header_is_whole(kept):
    thumbnail = saved(picture(size=(16, 16)), "JPEG")  # has an end marker of its own, before the pixels
    exif = b"Exif\0\0" + thumbnail
    data = saved(picture(size=(300, 200)), "JPEG", quality=95, exif=exif)
    read_header(data)
    with pytest.raises(ImageError, match="cut off"):
        read_header(data[: int(kept * len(data))])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("order", ["<", ">"], ids=["intel", "motorola"])
def test_exif_orientation_is_found_in_both_byte_orders(orientation, order):
    mark = {"<": b"II", ">": b"MM"}[order]
    entries = [(0x010F, 2, 4, 0), (0x0112, 3, 1, orientation)]
    body = b"".join(struct.pack(f"{order}HHIHH", *entry, 0) for entry in entries)
    tiff = mark + struct.pack(f"{order}HIH", 42, 8, len(entries)) + body
    assert exif_orientation(tiff) == orientation
    assert exif_orientation(tiff[:20]) == 1
    assert exif_orientation(b"") == 1


@pytest.mark.parametrize("orientation", range(2, 9))
def test_an_upright_copy_shows_what_a_viewer_shows_and_has_no_exif(orientation):
    from PIL import ImageOps

    data = rotated(orientation, "PNG")
    header = read_header(data)
    fresh, final = reencode(data, header, upright=True)
    assert (final.width, final.height) == header.upright_size
    assert final.orientation == 1
    shown = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert np.array_equal(np.asarray(decode(fresh)), np.asarray(shown))


def test_sixteen_bits_keep_their_upper_eight():
    values = np.array([[0, 255, 256, 32768, 65535]], np.uint16)
    data = saved(Image.fromarray(values), "PNG")
    fresh, header = reencode(data, read_header(data), upright=False)
    assert header == ("png", 5, 1, 1, 1, "")
    assert np.asarray(decode(fresh)).tolist() == [[0, 0, 1, 128, 255]]


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (saved(picture("CMYK"), "JPEG", quality=95), "jpeg"),
        (saved(picture(), "BMP"), "png"),
        (saved(picture("P"), "GIF"), "png"),
        (saved(picture(), "WEBP", quality=95), "jpeg"),
    ],
    ids=["cmyk", "bmp", "gif", "webp"],
)
def test_other_formats_become_jpeg_or_png_of_the_same_picture(data, kind):
    fresh, header = reencode(data, read_header(data), upright=False)
    assert (header.format, header.problem) == (kind, "")
    expected = np.asarray(decode(data).convert("RGB"), int)
    assert np.abs(np.asarray(decode(fresh), int) - expected).mean() < 4


def test_floating_point_pixels_are_refused():
    data = saved(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF")
    with pytest.raises(ImageError, match="mode F"):
        reencode(data, read_header(data), upright=False)


def test_a_bomb_of_pixels_is_refused_by_its_header():
    header = bytearray(PNG)
    header[16:24] = struct.pack(">II", 60_000, 60_000)
    import zlib

    header[29:33] = struct.pack(">I", zlib.crc32(bytes(header[12:29])))
    with pytest.raises(ImageError, match="at most"):
        read_header(bytes(header))
