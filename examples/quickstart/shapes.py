"""Draws the quickstart's data set: circles, squares and triangles in the layout of Pascal VOC.

    python -m examples.quickstart.shapes --output=shapes.tar.gz

The shapes vary in colour, size and rotation, hide parts of each other, are cut off by the picture's edge, and lie on
gradients, stripes, checks, blots and noise. Every picture has its own random generator, made from the seed and its
number, so more pictures never change those that there were; the archive has the same bytes each time.
"""

import argparse
import gzip
import io
import math
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

from mlcore.runtime.outputs import atomic_file

CLASSES = ("circle", "square", "triangle")
FOLDER = "shapes"
SIZES = ((320, 240), (320, 256), (300, 240), (256, 256))  # width, height
SMALLEST, LARGEST = 0.18, 0.55  # of the shape's extent to the picture's height
LEAST_VISIBLE = 0.75  # share of a shape that no other one hides
LEAST_CONTRAST = 100  # between a shape's colour and what is under it, as a distance in RGB
MOST_SHAPES = 5
MOST_TURN = math.radians(25)  # either way, from a square that lies and a triangle that points up
EMPTY_SHARE = 0.03  # pictures without any shape
_SMOOTH = 3  # shapes are drawn so many times larger and then made smaller, which smooths their edges

Generator = np.random.Generator
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Shape:
    """One shape of a picture.

    Attributes:
        name: Its class.
        box: Left, upper, right and lower edge of what is inside the picture, in pixels from 0, right and lower not
            included.
        cut: Whether the picture's edge cuts it.
    """

    name: str
    box: tuple[int, int, int, int]
    cut: bool


def draw_picture(seed: int, number: int) -> tuple[Image.Image, list[Shape]]:
    """The picture with this number, and its shapes."""
    generator = np.random.default_rng([seed, number])
    width, height = SIZES[generator.integers(len(SIZES))]
    canvas = _background(generator, width, height)
    count = 0 if generator.random() < EMPTY_SHARE else int(generator.integers(1, MOST_SHAPES + 1))
    shapes: list[Shape] = []
    visible: list[tuple[Any, int]] = []  # of each shape what can be seen of it, and how large it was
    for _ in range(4 * count):
        if len(shapes) == count:
            break
        name = CLASSES[generator.integers(len(CLASSES))]
        mask, cut = _mask(generator, name, width, height)
        solid = np.asarray(mask) > 127
        area = int(solid.sum())
        if area < 80 or any((seen & ~solid).sum() < LEAST_VISIBLE * whole for seen, whole in visible):
            continue
        fill = _fill(generator, canvas, solid)
        if fill is None:
            continue
        canvas.paste(fill, (0, 0), mask)
        visible = [(seen & ~solid, whole) for seen, whole in visible] + [(solid, area)]
        rows, columns = np.flatnonzero(solid.any(axis=1)), np.flatnonzero(solid.any(axis=0))
        box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
        shapes.append(Shape(name, box, cut))
    noise = generator.normal(0, generator.uniform(1, 9), (height, width, 1))
    return Image.fromarray(np.clip(np.asarray(canvas) + noise, 0, 255).astype(np.uint8)), shapes


def _colour(generator: Generator) -> npt.NDArray[np.float64]:
    return generator.uniform(15, 240, 3)


def _background(generator: Generator, width: int, height: int) -> Image.Image:
    """A gradient in any direction, mostly with a texture on it."""
    angle = generator.uniform(0, 2 * math.pi)
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    along = np.cos(angle) * x / width + np.sin(angle) * y / height
    along = (along - along.min()) / (along.max() - along.min())
    first, second = _colour(generator), _colour(generator)
    second = first + (second - first) * generator.uniform(0.2, 0.7)
    pixels = first + along[..., None] * (second - first)
    strength = generator.uniform(5, 20)
    period = generator.uniform(10, 45)
    turned = np.cos(angle) * x + np.sin(angle) * y
    across = np.sin(angle) * x - np.cos(angle) * y
    texture = generator.integers(5)
    if texture == 0:
        pixels += strength * np.sign(np.sin(2 * math.pi * turned / period))[..., None]
    elif texture == 1:
        wave = np.sin(2 * math.pi * turned / period) * np.sin(2 * math.pi * across / period)
        pixels += strength * np.sign(wave)[..., None]
    elif texture == 2:
        pixels += generator.normal(0, 1.6 * strength, pixels.shape)
    elif texture == 3:
        coarse = generator.normal(0, 60, (height // 20, width // 20, 3))
        blots = Image.fromarray(np.clip(coarse + 128, 0, 255).astype(np.uint8)).resize(
            (width, height), Image.Resampling.BICUBIC
        )
        pixels += (np.asarray(blots).astype(np.float64) - 128) * strength / 30
    canvas = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    return canvas.filter(ImageFilter.GaussianBlur(generator.uniform(0, 1.2)))


def _mask(generator: Generator, name: str, width: int, height: int) -> tuple[Image.Image, bool]:
    """Where a shape is, in grey for its smooth edge, and whether the picture's edge cuts it."""
    # Small ones are as frequent as large ones on a logarithmic scale.
    extent = height * math.exp(generator.uniform(math.log(SMALLEST), math.log(LARGEST)))
    radius = extent / 2
    margin = radius * (0.35 if generator.random() < 0.15 else 1.05)
    x, y = generator.uniform(margin, width - margin), generator.uniform(margin, height - margin)
    turn = generator.uniform(-MOST_TURN, MOST_TURN)
    reach = 1.1 * radius
    # Only the part around the shape is drawn, larger, and made smaller.
    left, upper, side = math.floor(x - reach), math.floor(y - reach), math.ceil(2 * reach) + 2
    part = Image.new("L", (_SMOOTH * side, _SMOOTH * side))
    pen = ImageDraw.Draw(part)
    if name == "circle":
        corners = [(x - radius, y - radius), (x + radius, y + radius)]
    else:
        sides = {"square": 4, "triangle": 3}[name]
        first = {"square": math.pi / 4, "triangle": -math.pi / 2}[name]
        angles = [first + turn + 2 * math.pi * corner / sides for corner in range(sides)]
        corners = [(x + reach * math.cos(angle), y + reach * math.sin(angle)) for angle in angles]
    points = [(_SMOOTH * (across - left), _SMOOTH * (down - upper)) for across, down in corners]
    if name == "circle":
        pen.ellipse(points, fill=255)
    else:
        pen.polygon(points, fill=255)
    part = part.resize((side, side), Image.Resampling.BOX)
    mask = Image.new("L", (width, height))
    mask.paste(part, (left, upper))
    inside = np.asarray(part) > 127
    return mask, int(inside.sum()) > int((np.asarray(mask) > 127).sum())


def _fill(generator: Generator, canvas: Image.Image, solid: npt.NDArray[np.bool_]) -> Image.Image | None:
    """A colour, shaded or striped, that stands out from what it covers; None where none was found."""
    under = np.asarray(canvas)[solid].mean(axis=0)
    for _ in range(20):
        colour = _colour(generator)
        if np.linalg.norm(colour - under) >= LEAST_CONTRAST:
            break
    else:
        return None
    height, width = solid.shape
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    pixels = np.tile(colour.astype(np.float32), (height, width, 1))
    angle = generator.uniform(0, 2 * math.pi)
    along = np.float32(math.cos(angle)) * x + np.float32(math.sin(angle)) * y
    style = generator.integers(4)
    if style == 1:
        pixels += ((along - along[solid].mean()) / 6)[..., None].clip(-18, 18)
    elif style == 2:
        pixels += 14 * np.sign(np.sin(2 * math.pi * along / generator.uniform(8, 20)))[..., None]
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def annotation(name: str, image: Image.Image, shapes: list[Shape]) -> bytes:
    """The XML of one picture; boxes in VOC's own 1-based pixels, the last one included."""
    root = ElementTree.Element("annotation")

    def add(parent: ElementTree.Element, tag: str, text: object = None) -> ElementTree.Element:
        element = ElementTree.SubElement(parent, tag)
        element.text = None if text is None else str(text)
        return element

    add(root, "folder", FOLDER)
    add(root, "filename", f"{name}.jpg")
    size = add(root, "size")
    for tag, value in (("width", image.width), ("height", image.height), ("depth", 3)):
        add(size, tag, value)
    add(root, "segmented", 0)
    for shape in shapes:
        element = add(root, "object")
        add(element, "name", shape.name)
        add(element, "pose", "Unspecified")
        add(element, "truncated", int(shape.cut))
        add(element, "difficult", 0)
        left, upper, right, lower = shape.box
        box = add(element, "bndbox")
        for tag, value in (("xmin", left + 1), ("ymin", upper + 1), ("xmax", right), ("ymax", lower)):
            add(box, tag, value)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="UTF-8", xml_declaration=True) + b"\n"


def files(counts: Mapping[str, int], seed: int) -> Iterator[tuple[str, bytes]]:
    """Path and content of every file of the data set.

    Args:
        counts: Pictures in each split, such as `{"train": 400, "test": 100}`.
        seed: Another seed draws other pictures.
    """
    number = 0
    for split, count in counts.items():
        names = []
        for _ in range(count):
            image, shapes = draw_picture(seed, number)
            names.append(f"{split}_{number:05d}")
            buffer = io.BytesIO()
            image.save(buffer, "JPEG", quality=90)
            yield f"{FOLDER}/JPEGImages/{names[-1]}.jpg", buffer.getvalue()
            yield f"{FOLDER}/Annotations/{names[-1]}.xml", annotation(names[-1], image, shapes)
            number += 1
        yield f"{FOLDER}/ImageSets/Main/{split}.txt", "".join(f"{name}\n" for name in names).encode()


def pack(path: Path, counts: Mapping[str, int], seed: int) -> None:
    """Writes the data set to a tar.gz, whole or not at all."""
    with (
        atomic_file(path) as temporary,
        temporary.open("wb") as raw,
        # No time and no owner in it: the same pictures give the same bytes.
        gzip.GzipFile("", "wb", compresslevel=1, fileobj=raw, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for name, content in files(counts, seed):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def main() -> None:
    """Writes the archive."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="the archive, a .tar.gz")
    parser.add_argument("--train", type=int, default=400, help="pictures to train on (default: 400)")
    parser.add_argument("--val", type=int, default=50, help="pictures to choose by (default: 50)")
    parser.add_argument("--test", type=int, default=100, help="held-out pictures (default: 100)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    counts = {"train": arguments.train, "val": arguments.val, "test": arguments.test}
    pack(arguments.output, counts, arguments.seed)


if __name__ == "__main__":
    main()
