"""Draws boxes, masks, classes and scores on pictures, legible on any of them.

A box is a coloured line between two dark ones, so that it shows on every background; its label stands on the same
colour in black or white, whichever reads better. Sizes follow the picture's. Pillow alone is needed.
"""

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageColor, ImageDraw, ImageFont

# Far apart in hue and lightness; the first are the ones that most pictures need.
_PALETTE = (
    "#ffb000", "#1e88e5", "#e8396b", "#3ddc84", "#b388ff", "#ff7043", "#26c6da", "#d4e157",
    "#ec407a", "#8d6e63", "#42a5f5", "#9ccc65", "#ab47bc", "#ffee58", "#26a69a", "#ef5350",
)  # fmt: skip
_GOLDEN_RATIO = 0.618033988749895
_HALO = (0, 0, 0, 150)
_MASK_OPACITY = 0.45
_SMALLEST_SIDE = 320  # of the longer side; a label on a smaller picture would cover it

Rectangle = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class DrawnBox:
    """One object to draw.

    Attributes:
        xmin: Left edge, in pixels of the picture.
        ymin: Upper edge.
        xmax: Right edge.
        ymax: Lower edge.
        label: Name of the class, or any text.
        class_id: Decides the colour.
        score: From 0 to 1; None for one that is known, as a label made by hand.
        mask: Grey picture that covers the box, white (above 127) where the object is.
    """

    xmin: float
    ymin: float
    xmax: float
    ymax: float
    label: str
    class_id: int
    score: float | None = None
    mask: Image.Image | None = None

    @property
    def text(self) -> str:
        """What its label says: `circle 97%`."""
        if self.score is None:
            return self.label
        return f"{self.label} {_percent(self.score)}".strip()


def _percent(score: float) -> str:
    # 99.6 % is not certainty, and 0.4 % is not nothing.
    percent = round(100 * score)
    if percent == 100 and score < 1:
        return "99%"
    return "<1%" if percent == 0 and score > 0 else f"{percent}%"


def colour_of(class_id: int) -> tuple[int, int, int]:
    """The colour of a class: the same in every picture and run."""
    if 1 <= class_id <= len(_PALETTE):
        red, green, blue = ImageColor.getrgb(_PALETTE[class_id - 1])[:3]
        return red, green, blue
    # Steps of the golden ratio spread any number of hues evenly.
    hue = (class_id * _GOLDEN_RATIO) % 1.0
    red_, green_, blue_ = colorsys.hsv_to_rgb(hue, 0.55 + 0.35 * (class_id % 2), 0.95)
    return round(255 * red_), round(255 * green_), round(255 * blue_)


def draw_boxes(image: Image.Image, boxes: Sequence[DrawnBox], *, labels: bool = True) -> Image.Image:
    """A copy of a picture with boxes on it, in RGB.

    A picture whose longer side is below 320 pixels is enlarged by a whole factor, so that labels can be read. Boxes
    with the highest score are drawn last, on top. Labels avoid each other where there is room, and stay inside.

    Args:
        image: Picture, in any mode that Pillow converts to RGB.
        boxes: What to draw; parts outside the picture are cut off.
        labels: Whether to write class and score.
    """
    factor = max(1, -(-_SMALLEST_SIDE // max(image.size)))
    canvas = image.convert("RGB")
    if factor > 1:
        canvas = canvas.resize((factor * image.width, factor * image.height), Image.Resampling.BICUBIC)
    placed = []
    for box in boxes:
        rectangle = _clip((factor * box.xmin, factor * box.ymin, factor * box.xmax, factor * box.ymax), canvas.size)
        if rectangle is not None:
            placed.append((box, rectangle))
    placed.sort(key=lambda pair: 2.0 if pair[0].score is None else pair[0].score)
    for box, _ in placed:
        if box.mask is not None:
            full = (factor * box.xmin, factor * box.ymin, factor * box.xmax, factor * box.ymax)
            _draw_mask(canvas, full, box.mask, colour_of(box.class_id))

    line = max(2, round(max(canvas.size) / 350))
    layer = Image.new("RGBA", canvas.size)
    pen = ImageDraw.Draw(layer)
    for box, rectangle in placed:
        _draw_outline(pen, rectangle, colour_of(box.class_id), line)
    if labels:
        _draw_labels(pen, placed, canvas.size, line)
    return Image.alpha_composite(canvas.convert("RGBA"), layer).convert("RGB")


def _clip(rectangle: Rectangle, size: tuple[int, int]) -> Rectangle | None:
    """The part of a rectangle inside the picture, at least one pixel each way; None where there is none."""
    xmin, ymin, xmax, ymax = rectangle
    width, height = size
    if not (xmin < width and ymin < height and xmax > 0 and ymax > 0 and xmax >= xmin and ymax >= ymin):
        return None  # also where one of them is not a number
    xmin, ymin = max(0.0, min(xmin, width - 1)), max(0.0, min(ymin, height - 1))
    return xmin, ymin, max(xmin + 1, min(xmax, width)), max(ymin + 1, min(ymax, height))


def _draw_mask(canvas: Image.Image, rectangle: Rectangle, mask: Image.Image, colour: tuple[int, int, int]) -> None:
    limit = 4 * max(canvas.size)
    if not all(abs(edge) < limit for edge in rectangle):
        return
    left, top, right, bottom = (round(edge) for edge in rectangle)
    size = (right - left, bottom - top)
    if min(size) < 1:
        return
    smooth = mask.convert("L").resize(size, Image.Resampling.BILINEAR)
    opacity = smooth.point([0 if value < 128 else round(255 * _MASK_OPACITY) for value in range(256)])
    canvas.paste(colour, (left, top), opacity)


def _draw_outline(pen: ImageDraw.ImageDraw, rectangle: Rectangle, colour: tuple[int, int, int], line: int) -> None:
    xmin, ymin, xmax, ymax = (round(edge) for edge in rectangle)
    halo = max(1, line // 2)
    outer = (xmin, ymin, max(xmin, xmax - 1), max(ymin, ymax - 1))
    pen.rectangle(outer, outline=_HALO, width=line + 2 * halo)
    inner = (outer[0] + halo, outer[1] + halo, outer[2] - halo, outer[3] - halo)
    if inner[0] < inner[2] and inner[1] < inner[3]:
        pen.rectangle(inner, outline=(*colour, 255), width=line)
    else:
        pen.rectangle(outer, outline=(*colour, 255))


def _draw_labels(
    pen: ImageDraw.ImageDraw, placed: Sequence[tuple[DrawnBox, Rectangle]], size: tuple[int, int], line: int
) -> None:
    font_size = min(48, max(11, round((size[0] * size[1]) ** 0.5 / 34)))
    font = ImageFont.load_default(font_size)
    pad = max(2, font_size // 5)
    taken: list[Rectangle] = []
    spots: list[tuple[DrawnBox, str, Rectangle]] = []
    # The highest score chooses its place first.
    for box, rectangle in reversed(placed):
        text = _fitted(pen, box.text, font, size[0] - 2 * pad)
        if not text:
            continue
        width = pen.textlength(text, font=font) + 2 * pad
        height = font_size * 1.15 + pad
        spot = _place(rectangle, width=width, height=height, size=size, line=line, taken=taken)
        taken.append(spot)
        spots.append((box, text, spot))
    for box, text, (left, top, right, bottom) in reversed(spots):
        colour = colour_of(box.class_id)
        pen.rectangle((left, top, right, bottom), fill=(*colour, 255), outline=_HALO)
        ink = (0, 0, 0, 255) if _luminance(colour) > 0.36 else (255, 255, 255, 255)
        pen.text(((left + right) / 2, (top + bottom) / 2), text, font=font, fill=ink, anchor="mm")


def _fitted(
    pen: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, room: float
) -> str:
    """The text, cut with an ellipsis where it is wider than the picture."""
    text = " ".join(text.split())
    if pen.textlength(text, font=font) <= room:
        return text
    while text and pen.textlength(text + "...", font=font) > room:
        text = text[:-1]
    return text + "..." if text else ""


def _place(
    box: Rectangle, *, width: float, height: float, size: tuple[int, int], line: int, taken: Sequence[Rectangle]
) -> Rectangle:
    """Where a label covers other labels least: above its box, inside at its top, below it, inside at its bottom."""
    xmin, ymin, xmax, ymax = box
    corners = [
        (xmin, ymin - height), (xmax - width, ymin - height), (xmin, ymax), (xmax - width, ymax),
        (xmin + line, ymin + line), (xmax - width - line, ymin + line),
        (xmin + line, ymax - height - line), (xmax - width - line, ymax - height - line),
    ]  # fmt: skip
    best, best_cost = None, 0.0
    for preference, (wanted_left, wanted_top) in enumerate(corners):
        left = max(0.0, min(wanted_left, size[0] - width - 1))
        top = max(0.0, min(wanted_top, size[1] - height - 1))
        spot = (left, top, left + width, top + height)
        # Being pushed back into the picture costs a little, covering another label much.
        moved = abs(left - wanted_left) + abs(top - wanted_top)
        cost = 100 * sum(_overlap(spot, other) for other in taken) + moved * height + preference
        if best is None or cost < best_cost:
            best, best_cost = spot, cost
    assert best is not None
    return best


def _overlap(one: Rectangle, other: Rectangle) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, width) * max(0.0, height)


def _luminance(colour: tuple[int, int, int]) -> float:
    """Relative luminance of WCAG 2 (https://www.w3.org/TR/WCAG22/#dfn-relative-luminance)."""
    linear = [
        value / 255 / 12.92 if value <= 0.03928 * 255 else ((value / 255 + 0.055) / 1.055) ** 2.4 for value in colour
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
