"""A picture of anyone's as a classifier of MNIST's kind wants it: grey, small, light on dark."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from mlcore.data.idx import Array

RULE = (
    "A picture is made grey, padded to the model's proportions with the median grey of its border, and resized by the "
    "mean over areas; where the border is lighter than half, dark and light are swapped, since the data sets of "
    "MNIST's kind are light on dark."
)


@dataclass(frozen=True)
class Grey:
    """A picture as it is sent.

    Attributes:
        pixels: uint8 (rows, columns), 0 black to 255 white.
        inverted: Whether dark and light were swapped.
    """

    pixels: Array
    inverted: bool


def as_grey(rgb: Array, rows: int, columns: int) -> Grey:
    """A picture by `RULE`.

    Args:
        rgb: uint8 (height, width, 3).
        rows: Height that the model takes.
        columns: Width that the model takes.
    """
    image = Image.fromarray(rgb).convert("L")
    values = np.asarray(image)
    border = np.concatenate([values[0], values[-1], values[:, 0], values[:, -1]])
    paper = int(np.median(border))
    height, width = values.shape
    if height * columns != width * rows:
        padded = max(height, -(-width * rows // columns)), max(width, -(-height * columns // rows))
        canvas = Image.new("L", (padded[1], padded[0]), paper)
        canvas.paste(image, ((padded[1] - width) // 2, (padded[0] - height) // 2))
        image = canvas
    if image.size != (columns, rows):
        smaller = image.width >= columns
        image = image.resize((columns, rows), Image.Resampling.BOX if smaller else Image.Resampling.BILINEAR)
    pixels = np.asarray(image)
    inverted = paper > 127
    return Grey(255 - pixels if inverted else pixels.copy(), inverted)
