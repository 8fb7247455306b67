"""Pictures are found and read as a person sees them."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mlcore.detection.pictures import drawn_names, find_pictures, pictures_digest, read_picture
from mlcore.runtime.errors import UsageError

LEFT_RED = np.zeros((20, 30, 3), np.uint8)
LEFT_RED[:, :15] = (250, 10, 10)
LEFT_RED[:, 15:] = (10, 10, 250)


def save(path: Path, image: Image.Image | None = None, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (image or Image.fromarray(LEFT_RED)).save(path, **options)  # type: ignore[arg-type]
    return path


def read(path: Path) -> np.ndarray:
    """The pixels of a picture; what TensorFlow is given must decode to the same."""
    read = read_picture(path)
    with Image.open(io.BytesIO(read.encoded)) as image:
        assert image.format in ("JPEG", "PNG", "BMP")
        assert (np.asarray(image.convert("RGB")) == read.rgb).all()
    return read.rgb


def names(*inputs: object) -> list[str]:
    return [picture.name for picture in find_pictures([str(text) for text in inputs])]


def test_a_folder_is_searched_at_any_depth_for_pictures_alone(tmp_path: Path) -> None:
    for name in ("b.jpg", "a.PNG", "deep/er/c.webp", ".hidden.jpg", ".cache/d.jpg"):
        save(tmp_path / name)
    (tmp_path / "weights.h5").write_text("no")
    (tmp_path / "a.xml").write_text("<no/>")
    assert names(tmp_path) == ["a.PNG", "b.jpg", "deep/er/c.webp"]


def test_a_file_that_is_named_is_taken_whatever_it_is_called(tmp_path: Path) -> None:
    save(tmp_path / "picture", format="PNG")
    assert names(tmp_path / "picture") == ["picture"]


def test_globs_match_and_a_picture_counts_once(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg", "sub/c.jpg", "d[1].jpg"):
        save(tmp_path / name)
    assert names(tmp_path / "?.jpg") == ["a.jpg", "b.jpg"]
    assert names(tmp_path / "**" / "c.jpg", tmp_path / "b.jpg") == ["c.jpg", "b.jpg"]
    assert names(tmp_path / "d[1].jpg") == ["d[1].jpg"]
    (tmp_path / "link.jpg").symlink_to(tmp_path / "a.jpg")
    assert names(tmp_path / "a.jpg", tmp_path / "?.jpg", tmp_path / "link.jpg") == ["a.jpg", "b.jpg"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "--input: missing"),
        (["nowhere.jpg"], "--input=nowhere.jpg: no such file or folder"),
        (["*.nothing"], r"--input=\*.nothing: no match"),
    ],
)
def test_an_input_that_is_not_there_is_named(
    given: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=message):
        find_pictures(given)


def test_a_folder_without_pictures_is_named(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no")
    with pytest.raises(UsageError, match="no pictures in it"):
        find_pictures([str(tmp_path)])


def test_two_pictures_never_share_a_drawn_name(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.png", "A.gif", "sub/a.jpg"):
        save(tmp_path / name)
    drawn = drawn_names(find_pictures([str(tmp_path)]))
    assert drawn == ["A.jpg", "a-2.jpg", "a-3.jpg", "sub/a.jpg"]


def test_the_digest_tells_whether_something_changed(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    before = pictures_digest(find_pictures([str(tmp_path)]))
    assert pictures_digest(find_pictures([str(tmp_path)])) == before
    save(tmp_path / "b.png")
    assert pictures_digest(find_pictures([str(tmp_path)])) != before


@pytest.mark.parametrize("ending", ["png", "bmp", "tiff", "webp", "gif", "ppm", "tga", "jpg"])
def test_any_format_is_read(ending: str, tmp_path: Path) -> None:
    options = {"quality": 95} if ending == "jpg" else {"lossless": True} if ending == "webp" else {}
    pixels = read(save(tmp_path / f"a.{ending}", **options))
    assert pixels.shape == (20, 30, 3) and pixels.dtype == np.uint8
    assert np.abs(pixels[:, :12].astype(int) - LEFT_RED[:, :12]).max() < 12


@pytest.mark.parametrize(
    "mode", ["CMYK.jpg", "YCbCr.jpg", "RGBA.png", "P.png", "LA.png", "1.png", "F.tiff", "I.tiff", "LAB.tiff"]
)
def test_any_mode_is_read(mode: str, tmp_path: Path) -> None:
    colours = mode.partition(".")[0]
    image = Image.fromarray(LEFT_RED).convert("L" if colours in ("LA", "F", "I") else "RGB").convert(colours)
    if colours == "LAB":
        image = Image.new("LAB", (30, 20), (50, 10, 10))
    assert read(save(tmp_path / f"a{mode}", image)).shape == (20, 30, 3)


def test_of_16_bits_the_upper_eight_are_taken(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 255, 256, 40_000, 65_535]], np.uint16))
    assert read(save(tmp_path / "a.png", image))[0, :, 0].tolist() == [0, 0, 1, 156, 255]


def test_what_exif_turns_is_turned(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = read(save(tmp_path / "a.png", exif=exif))
    assert pixels.shape == (30, 20, 3)
    assert pixels[5, 10].tolist() == [250, 10, 10] and pixels[25, 10].tolist() == [10, 10, 250]


def test_of_an_animation_the_first_frame_is_taken(tmp_path: Path) -> None:
    second = Image.new("RGB", (30, 20), "white")
    pixels = read(save(tmp_path / "a.gif", save_all=True, append_images=[second]))
    assert pixels[10, 5].tolist() == [250, 10, 10]


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "not a picture"), (b"hello", "not a picture"), (b"\x89PNG\r\n\x1a\n" + bytes(20), "not a picture")],
)
def test_a_file_that_is_no_picture_says_so(content: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(OSError, match=reason):
        read(tmp_path / "a.jpg")


def test_a_picture_that_is_cut_off_says_so(tmp_path: Path) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (99, 99, 3), dtype=np.uint8))
    whole = save(tmp_path / "a.jpg", noise).read_bytes()
    (tmp_path / "a.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(OSError, match="truncated"):
        read(tmp_path / "a.jpg")
