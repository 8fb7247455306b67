from collections.abc import Callable

import numpy as np
import pytest

from mlcore.detection.export import generated_pictures, package_versions
from mlcore.detection.metrics import Detections
from mlcore.detection.verification import FreshProcess, Selection, check, compare
from mlcore.runtime.errors import DataError


def detections(seed: int, count: int = 20) -> Detections:
    generator = np.random.default_rng(seed)
    low = generator.uniform(0, 0.6, (count, 2))
    return Detections(
        boxes_yxyx=np.concatenate([low, low + generator.uniform(0.1, 0.4, (count, 2))], axis=1).astype(np.float32),
        scores=np.sort(generator.uniform(0, 1, count).astype(np.float32))[::-1],
        classes=generator.integers(1, 4, count),
    )


def changed(found: Detections, **changes) -> Detections:
    return Detections(**{"boxes_yxyx": found.boxes_yxyx, "scores": found.scores, "classes": found.classes} | changes)


def test_the_same_detections_agree_whatever_their_order() -> None:
    expected = [detections(1), detections(2)]
    turned = [
        Detections(boxes_yxyx=one.boxes_yxyx[::-1], scores=one.scores[::-1], classes=one.classes[::-1])
        for one in expected
    ]
    agreement = check(expected, {"serving_default": expected, "image_bytes": turned})
    assert (agreement.share, agreement.detections, agreement.pictures) == (1.0, 40, 2)
    assert (agreement.box_difference, agreement.score_difference) == (0.0, 0.0)


def test_rounding_errors_are_measured_and_allowed() -> None:
    one = detections(1)
    near = changed(one, boxes_yxyx=one.boxes_yxyx + np.float32(1e-4), scores=one.scores - np.float32(2e-4))
    agreement = check([one], {"image_bytes": [near]})
    assert agreement.share == 1.0
    assert agreement.box_difference == pytest.approx(1e-4, rel=0.01)
    assert agreement.score_difference == pytest.approx(2e-4, rel=0.01)


def full(seed: int, spread: float = 0.9) -> Detections:
    """As many as a model gives, with scores that differ by so much from the best to the last."""
    found = detections(seed, Selection().count)
    return changed(found, scores=np.linspace(0.06 + spread, 0.06, len(found.scores), dtype=np.float32))


def moved(found: Detections, by: float) -> Detections:
    sides = found.boxes_yxyx[:, 2:] - found.boxes_yxyx[:, :2]
    return changed(found, boxes_yxyx=found.boxes_yxyx + by * np.tile(sides, 2))


@pytest.mark.parametrize("one", [detections(1), full(1), full(1, 0.3)], ids=["a few", "full list", "flat scores"])
@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda one: changed(one, classes=one.classes % 3 + 1), id="classes shifted"),
        pytest.param(lambda one: changed(one, boxes_yxyx=one.boxes_yxyx[:, [1, 0, 3, 2]]), id="x and y swapped"),
        pytest.param(lambda one: changed(one, boxes_yxyx=one.boxes_yxyx * 0.9), id="boxes scaled"),
        pytest.param(lambda one: moved(one, 0.05), id="boxes moved by a twentieth"),
        pytest.param(lambda one: changed(one, scores=one.scores * 0.5), id="scores halved"),
        pytest.param(lambda one: changed(one, scores=one.scores ** np.float32(0.8)), id="scores raised"),
        pytest.param(lambda one: changed(one, boxes_yxyx=full(2).boxes_yxyx[: len(one.scores)]), id="other weights"),
    ],
)
def test_a_model_that_finds_something_else_is_refused(one: Detections, change: Callable) -> None:
    for expected, actual in ((one, change(one)), (change(one), one)):
        with pytest.raises(DataError, match=r"the exported image_bytes .* nothing was published"):
            check([expected], {"image_bytes": [actual]})


@pytest.mark.parametrize("spread", [0.9, 0.005])
def test_another_model_is_refused_however_flat_its_scores(spread: float) -> None:
    """With scores that are all as good as each other every detection might be a near tie."""
    with pytest.raises(DataError, match=r"the exported image_bytes .* nothing was published"):
        check([full(1, spread), full(2, spread)], {"image_bytes": [full(3, spread), full(4, spread)]})


def replaced(found: Detections, index: int, box: list[float], score: float, label: int = 1) -> Detections:
    boxes, scores, classes = found.boxes_yxyx.copy(), found.scores.copy(), found.classes.copy()
    boxes[index], scores[index], classes[index] = box, score, label
    return Detections(boxes_yxyx=boxes, scores=scores, classes=classes)


def picked(found: Detections, indices: list[int]) -> Detections:
    return Detections(
        boxes_yxyx=found.boxes_yxyx[indices], scores=found.scores[indices], classes=found.classes[indices]
    )


CORNER = [0.0, 0.0, 0.1, 0.1]  # where no other box is
HALF_OVER = [0.0, 0.0, 0.1, 0.06]
ELSEWHERE = [0.9, 0.9, 1.0, 1.0]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param(
            replaced(full(1), 99, CORNER, 0.061),
            replaced(full(1), 99, ELSEWHERE, 0.063),
            id="another in the last place",
        ),
        pytest.param(
            replaced(detections(1), 0, CORNER, 0.052), picked(detections(1), [*range(1, 20)]), id="at the least score"
        ),
        pytest.param(
            replaced(full(1), 3, CORNER, 0.701), replaced(full(1), 3, HALF_OVER, 0.703), id="suppression kept the other"
        ),
    ],
)
def test_near_ties_speak_neither_for_nor_against(one: Detections, other: Detections) -> None:
    for agreement in (compare([one], [other]), compare([other], [one])):
        assert (agreement.share, agreement.ties) == (1.0, 1)


def test_a_near_tie_in_suppression_can_bring_about_others() -> None:
    """The box that the one list kept would have suppressed a worse one, which the other list has."""
    worse = [0.0, 0.0, 0.06, 0.1]
    one = picked(replaced(full(1), 3, CORNER, 0.701), [*range(70), *range(71, 100)])
    other = replaced(replaced(full(1), 3, HALF_OVER, 0.703), 70, worse, 0.3)
    for agreement in (compare([one], [other]), compare([other], [one])):
        assert (agreement.share, agreement.ties) == (1.0, 2)
    without_tie = replaced(other, 3, CORNER, 0.701)
    assert compare([one], [without_tie]).share == compare([without_tie], [one]).share == 0.99


@pytest.mark.parametrize(
    ("box", "score", "label"),
    [
        pytest.param(HALF_OVER, 0.73, 1, id="of another score"),
        pytest.param(HALF_OVER, 0.703, 2, id="of another class"),
        pytest.param([0.0, 0.0, 0.1, 0.04], 0.703, 1, id="that overlaps too little"),
    ],
)
def test_a_box_that_suppression_cannot_have_kept_instead_is_no_tie(box: list[float], score: float, label: int) -> None:
    agreement = compare([replaced(full(1), 3, CORNER, 0.701)], [replaced(full(1), 3, box, score, label)])
    assert (agreement.share, agreement.ties) == (0.99, 0)


def test_a_good_detection_that_is_missing_is_no_tie_though_the_list_is_full() -> None:
    one = full(1)
    other = replaced(picked(one, [*range(5), *range(6, 100), 99]), 99, ELSEWHERE, 0.06)
    assert compare([one], [other]).share == 0.99


def test_boxes_too_thin_to_overlap_are_compared_by_their_corners() -> None:
    line = replaced(detections(1), 0, [0.5, 0.0, 0.5, 1.0], 0.9)
    assert compare([line], [replaced(line, 0, [0.5001, 0.0, 0.5001, 1.0], 0.9)]).share == 1.0
    assert compare([line], [replaced(line, 0, [0.51, 0.0, 0.51, 1.0], 0.9)]).share < 1.0


def test_missing_and_additional_detections_count_against_the_agreement() -> None:
    one, more = detections(1, 20), detections(1, 20)
    fewer = changed(one, boxes_yxyx=one.boxes_yxyx[:10], scores=one.scores[:10], classes=one.classes[:10])
    assert compare([one], [fewer]).share == compare([fewer], [more]).share == 0.5


def test_nothing_found_by_both_is_agreement() -> None:
    empty = Detections(boxes_yxyx=np.zeros((0, 4)), scores=np.zeros(0), classes=np.zeros(0, int))
    assert compare([empty], [empty]).share == 1.0


def test_generated_pictures_are_always_the_same() -> None:
    assert generated_pictures() == generated_pictures()
    assert len(set(generated_pictures())) == len(generated_pictures())


def test_the_packages_that_shape_an_export_are_named() -> None:
    assert {"python", "mlcore", "tensorflow", "tf-models-official"} <= set(package_versions())


def test_a_process_that_is_not_needed_any_more_is_gone() -> None:
    with FreshProcess() as fresh:
        process = fresh._process
        assert process.poll() is None
    assert process.returncode is not None
