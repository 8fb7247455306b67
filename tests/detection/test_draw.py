"""Drawn boxes can be read on any picture."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mlcore.detection.draw import DrawnBox, colour_of, draw_boxes


def box(xmin: float, ymin: float, xmax: float, ymax: float, **more: object) -> DrawnBox:
    values = {"label": "cat", "class_id": 1, "score": 0.9} | more
    return DrawnBox(xmin=xmin, ymin=ymin, xmax=xmax, ymax=ymax, **values)  # type: ignore[arg-type]


def luminance(pixels: np.ndarray) -> np.ndarray:
    linear = np.where(pixels / 255 <= 0.03928, pixels / 255 / 12.92, ((pixels / 255 + 0.055) / 1.055) ** 2.4)
    return linear @ np.array([0.2126, 0.7152, 0.0722])


BACKGROUNDS = {
    "white": Image.new("RGB", (400, 300), "white"),
    "black": Image.new("RGB", (400, 300), "black"),
    "grey": Image.new("L", (400, 300), 128),
    "noise": Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)),
    "the box's own colour": Image.new("RGB", (400, 300), colour_of(1)),
}


@pytest.mark.parametrize("name", BACKGROUNDS)
def test_an_outline_stands_out_on_any_background(name: str) -> None:
    drawn = np.asarray(draw_boxes(BACKGROUNDS[name], [box(100, 100, 300, 200)], labels=False)).astype(float)
    before = luminance(np.asarray(BACKGROUNDS[name].convert("RGB")).astype(float))[120:180, 60:90].mean()
    across = luminance(drawn[150, 97:108])  # from outside to inside, over the left edge
    contrast = (np.maximum(across, before) + 0.05) / (np.minimum(across, before) + 0.05)
    assert contrast.max() > 2


def test_what_is_not_under_a_box_or_label_is_untouched() -> None:
    picture = BACKGROUNDS["noise"]
    drawn = np.asarray(draw_boxes(picture, [box(100, 150, 200, 250)]))
    changed = np.argwhere((drawn != np.asarray(picture)).any(axis=2))
    assert changed[:, 1].min() >= 100 and changed[:, 0].max() < 250
    assert changed[:, 0].min() > 110 and changed[:, 1].max() <= 200
    inside = np.s_[165:235, 115:185]
    assert (drawn[inside] == np.asarray(picture)[inside]).all()


def test_a_class_has_one_colour_and_classes_differ() -> None:
    colours = [colour_of(number) for number in range(1, 41)]
    assert len(set(colours)) == 40
    first = np.array(colours[:8], float)
    distances = np.linalg.norm(first[:, None] - first[None], axis=2)
    assert distances[~np.eye(8, dtype=bool)].min() > 60
    assert colour_of(3) == colours[2]


def label_area(drawn: Image.Image, class_id: int) -> int:
    return int((np.asarray(drawn) == np.array(colour_of(class_id))).all(axis=2).sum())


@pytest.mark.parametrize("corner", [(0, 0), (360, 0), (0, 270), (360, 270), (-20, -10), (390, 290)])
def test_a_label_stays_whole_at_every_edge(corner: tuple[int, int]) -> None:
    x, y = corner
    picture = BACKGROUNDS["black"]
    in_the_middle = label_area(draw_boxes(picture, [box(200, 150, 201, 151)]), 1)
    assert label_area(draw_boxes(picture, [box(x, y, x + 40, y + 30)]), 1) >= 0.95 * in_the_middle


def test_labels_of_boxes_in_one_place_avoid_each_other() -> None:
    boxes = [box(150, 120, 250, 220, class_id=number, score=number / 10) for number in (1, 2, 3, 4)]
    picture = BACKGROUNDS["black"]
    drawn = draw_boxes(picture, boxes)
    for one in boxes:
        alone = label_area(
            draw_boxes(picture, [box(150, 120, 151, 121, class_id=one.class_id, score=one.score)]), one.class_id
        )
        assert label_area(drawn, one.class_id) > 0.8 * alone


def test_a_score_is_not_rounded_to_certainty() -> None:
    texts = [box(0, 0, 1, 1, score=score).text for score in (0.9999, 1.0, 0.974, 0.001, None)]
    assert texts == ["cat 99%", "cat 100%", "cat 97%", "cat <1%", "cat"]


def test_a_small_picture_is_enlarged_and_a_large_one_kept() -> None:
    assert draw_boxes(Image.new("RGB", (48, 32)), []).size == (336, 224)
    assert draw_boxes(Image.new("RGB", (2000, 10)), []).size == (2000, 10)


def test_a_mask_colours_what_it_covers() -> None:
    mask = Image.new("L", (28, 28))
    mask.paste(255, (14, 0, 28, 28))
    drawn = draw_boxes(BACKGROUNDS["black"], [box(100, 100, 300, 200, mask=mask)], labels=False)
    assert drawn.getpixel((150, 150)) == (0, 0, 0)
    red, green, blue = drawn.getpixel((250, 150))  # type: ignore[misc]
    assert 0.4 * colour_of(1)[0] < red < 0.5 * colour_of(1)[0] and green > 0 and blue == 0


@pytest.mark.parametrize("label", ["", "日本 \u0627\u0644 émoji \U0001f600", "x" * 500, "two\nlines\t\0"])
def test_any_label_can_be_drawn(label: str) -> None:
    draw_boxes(BACKGROUNDS["white"], [box(10, 10, 100, 100, label=label)])


edge = st.floats(allow_nan=True, allow_infinity=True) | st.floats(-50, 150)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(edge, edge, edge, edge), max_size=4))
def test_any_box_can_be_drawn(edges: list[tuple[float, float, float, float]]) -> None:
    mask = Image.new("L", (4, 4), 255)
    assert draw_boxes(Image.new("RGB", (100, 80)), [box(*four, mask=mask) for four in edges]).size == (400, 320)


def test_hundreds_of_boxes_take_little_time() -> None:
    generator = np.random.default_rng(1)
    boxes = [box(x, y, x + 60, y + 40, class_id=int(x) % 5) for x, y in generator.integers(0, 1200, (300, 2))]
    started = time.process_time()
    draw_boxes(Image.new("RGB", (1280, 1280)), boxes)
    assert time.process_time() - started < 3
