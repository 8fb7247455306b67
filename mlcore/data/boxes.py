"""From the corners in an annotation to a box inside the picture.

VOC counts pixels from 1 and both corners are included (VOC 2007 development kit, section "Annotated objects", and its
evaluation code, which takes xmax - xmin + 1 as the width). In coordinates of pixel edges, 0 at the left edge of the
image and `width` at its right one, such a box covers [xmin - 1, xmax]; a box over the whole image is 1..width in the
file and 0..width here. A set that counts from 0 is written by tools that draw edges, not pixels: there the box covers
[xmin, xmax], and 0..width is the whole image.
"""

import math
from typing import NamedTuple


class Box(NamedTuple):
    """A box in pixel edges: 0 <= xmin < xmax <= width of the image, and so for y."""

    xmin: float
    ymin: float
    xmax: float
    ymax: float


class Placed(NamedTuple):
    """What became of a box.

    Attributes:
        box: The box, or None where it was dropped.
        reason: Name of the rule that dropped or clipped it; empty where it was taken as it is.
        overshoot: Pixels by which the farthest corner lies outside the image, at least 0.
    """

    box: Box | None
    reason: str
    overshoot: float


def counts_from_one(starts_at_0: int, starts_at_1: int) -> bool:
    """Whether a set counts pixels from 1, by its boxes that touch the left or upper edge.

    Args:
        starts_at_0: Boxes whose xmin or ymin is 0 in the annotation.
        starts_at_1: Boxes whose xmin or ymin is 1.

    Returns:
        False if more boxes start at 0 than at 1. A majority, since one stray 0 must not move all the others.
    """
    return starts_at_0 <= starts_at_1


def place(corners: tuple[float, float, float, float], width: int, height: int, *, one_based: bool) -> Placed:
    """Put a box into an image of this size, by these rules in turn.

    1. A corner that is no finite number: dropped (box-not-a-number).
    2. A maximum below its minimum: dropped (box-inverted); which corner was meant is a guess.
    3. Less than one pixel between minimum and maximum, as written: dropped (box-zero-area); a click, not a box.
    4. Cut at the image's edges (box-beyond-edge); if less than one pixel is left, dropped (box-outside).
    """
    xmin, ymin, xmax, ymax = corners
    if not all(map(math.isfinite, corners)):
        return Placed(None, "box-not-a-number", 0)
    if xmax < xmin or ymax < ymin:
        return Placed(None, "box-inverted", 0)
    if xmax - xmin < 1 or ymax - ymin < 1:
        return Placed(None, "box-zero-area", 0)
    if one_based:
        xmin, ymin = xmin - 1, ymin - 1
    overshoot = max(-xmin, -ymin, xmax - width, ymax - height)
    if overshoot <= 0:
        return Placed(Box(xmin, ymin, xmax, ymax), "", 0)
    box = Box(max(xmin, 0), max(ymin, 0), min(xmax, width), min(ymax, height))
    if box.xmax - box.xmin < 1 or box.ymax - box.ymin < 1:
        return Placed(None, "box-outside", overshoot)
    return Placed(box, "box-beyond-edge", overshoot)
