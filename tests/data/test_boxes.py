import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlcore.data.boxes import Box, counts_from_one, place

CORNERS = st.tuples(*[st.floats(-2000, 2000) | st.integers(-50, 1100).map(float)] * 4)
ANYTHING = st.tuples(*[st.floats()] * 4)
SIZES = st.integers(1, 1000)


@given(CORNERS | ANYTHING, SIZES, SIZES, st.booleans())
def test_a_box_lies_inside_the_image_and_has_an_area_or_is_dropped_for_a_reason(corners, width, height, one_based):
    box, reason, overshoot = place(corners, width, height, one_based=one_based)
    assert overshoot >= 0
    if box is None:
        assert reason in ("box-not-a-number", "box-inverted", "box-zero-area", "box-outside")
    else:
        assert reason in ("", "box-beyond-edge")
        assert 0 <= box.xmin < box.xmax <= width
        assert 0 <= box.ymin < box.ymax <= height
        assert (reason == "") == (overshoot == 0)


@given(st.data(), st.integers(2, 1000), st.integers(2, 1000), st.booleans())
def test_a_box_inside_the_image_is_not_changed(data, width, height, one_based):
    first = int(one_based)
    xmin = data.draw(st.integers(first, width - 1))
    ymin = data.draw(st.integers(first, height - 1))
    xmax = data.draw(st.integers(xmin + 1, width))
    ymax = data.draw(st.integers(ymin + 1, height))
    placed = place((xmin, ymin, xmax, ymax), width, height, one_based=one_based)
    assert placed == (Box(xmin - first, ymin - first, xmax, ymax), "", 0)


@pytest.mark.parametrize(
    ("corners", "one_based", "box", "reason"),
    [
        ((1, 1, 640, 480), True, (0, 0, 640, 480), ""),
        ((0, 0, 640, 480), False, (0, 0, 640, 480), ""),
        ((0, 5, 10, 10), True, (0, 4, 10, 10), "box-beyond-edge"),
        ((600, 400, 641, 481), True, (599, 399, 640, 480), "box-beyond-edge"),
        ((504, 337, 504, 337), True, None, "box-zero-area"),
        ((10, 20, 50, 20), False, None, "box-zero-area"),
        ((50, 20, 10, 40), True, None, "box-inverted"),
        ((700, 20, 800, 40), True, None, "box-outside"),
        ((639.5, 20, 800, 40), False, None, "box-outside"),
        ((float("nan"), 20, 800, 40), True, None, "box-not-a-number"),
        ((10, 20, float("inf"), 40), True, None, "box-not-a-number"),
    ],
)
def test_the_stated_rules(corners, one_based, box, reason):
    placed = place(corners, 640, 480, one_based=one_based)
    assert (placed.box, placed.reason) == (box, reason)


def test_one_stray_zero_does_not_move_a_set_that_counts_from_one():
    assert counts_from_one(0, 610)
    assert counts_from_one(1, 610)
    assert counts_from_one(0, 0)
    assert not counts_from_one(40, 3)
