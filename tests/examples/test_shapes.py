"""The quickstart's data set says the truth about its pictures, and is the same each time."""

import io
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from examples.quickstart import shapes
from mlcore.data.voc import parse_voc


def test_the_same_seed_gives_the_same_archive_and_more_pictures_change_none(tmp_path: Path) -> None:
    shapes.pack(tmp_path / "a.tar.gz", {"train": 6, "test": 2}, seed=1)
    shapes.pack(tmp_path / "b.tar.gz", {"train": 6, "test": 2}, seed=1)
    assert (tmp_path / "a.tar.gz").read_bytes() == (tmp_path / "b.tar.gz").read_bytes()
    fewer, more = (dict(shapes.files({"train": count}, seed=1)) for count in (3, 6))
    assert all(more[name] == content for name, content in fewer.items() if "ImageSets" not in name)
    other = dict(shapes.files({"train": 3}, seed=2))
    assert all(other[name] != content for name, content in fewer.items() if name.endswith(".jpg"))


def test_the_layout_is_that_of_voc(tmp_path: Path) -> None:
    shapes.pack(tmp_path / "a.tar.gz", {"train": 2, "val": 1, "test": 1}, seed=0)
    with tarfile.open(tmp_path / "a.tar.gz") as archive:
        names = archive.getnames()
        listed = archive.extractfile("shapes/ImageSets/Main/train.txt").read().split()  # type: ignore[union-attr]
    assert listed == [b"train_00000", b"train_00001"]
    for name in ("train_00000", "train_00001", "val_00002", "test_00003"):
        assert f"shapes/JPEGImages/{name}.jpg" in names and f"shapes/Annotations/{name}.xml" in names


@pytest.fixture(scope="module")
def pictures() -> list[tuple[Image.Image, list[shapes.Shape]]]:
    return [shapes.draw_picture(0, number) for number in range(90)]


Pictures = list[tuple[Image.Image, list[shapes.Shape]]]


def test_annotations_are_read_as_they_were_meant(pictures: Pictures) -> None:
    image, drawn = next((image, drawn) for image, drawn in pictures if len(drawn) > 2)
    parsed = parse_voc(shapes.annotation("x", image, drawn))
    corners = [(left + 1, upper + 1, right, lower) for left, upper, right, lower in (shape.box for shape in drawn)]
    assert [found.corners for found in parsed.objects] == corners
    assert [found.name for found in parsed.objects] == [shape.name for shape in drawn]
    assert parsed.size == image.size


def test_there_is_every_class_in_every_size_and_pictures_without_any(pictures: Pictures) -> None:
    drawn = [shape for _, found in pictures for shape in found]
    counts = Counter(shape.name for shape in drawn)
    assert set(counts) == set(shapes.CLASSES) and min(counts.values()) > 0.2 * len(drawn)
    heights = [shape.box[3] - shape.box[1] for shape in drawn]
    assert min(heights) < 50 and max(heights) > 110
    assert any(not found for _, found in pictures)
    assert any(shape.cut for shape in drawn)


def test_a_box_has_the_form_of_its_shape(pictures: Pictures) -> None:
    """Circles and turned squares are as wide as high, and triangles nearly."""
    for _, found in pictures:
        for shape in found:
            left, upper, right, lower = shape.box
            if not shape.cut:
                allowed = 2 if shape.name != "triangle" else 0.25 * (right - left)
                assert abs((right - left) - (lower - upper)) <= allowed, shape


def test_there_is_something_else_in_a_box_than_around_it(pictures: Pictures) -> None:
    for image, found in pictures:
        if len(found) != 1 or found[0].cut:
            continue
        left, upper, right, lower = found[0].box
        pixels = np.asarray(image).astype(float)
        width, height = right - left, lower - upper
        middle = pixels[upper + height // 3 : lower - height // 3, left + width // 3 : right - width // 3]
        around = np.concatenate([pixels[:upper].reshape(-1, 3), pixels[lower:].reshape(-1, 3)])
        assert np.linalg.norm(middle.mean(axis=(0, 1)) - around.mean(axis=0)) > 20


def test_pictures_are_jpegs_that_pillow_reads() -> None:
    for name, content in shapes.files({"train": 3}, seed=0):
        if name.endswith(".jpg"):
            with Image.open(io.BytesIO(content)) as image:
                image.load()
                assert image.format == "JPEG" and image.mode == "RGB" and image.size in shapes.SIZES
