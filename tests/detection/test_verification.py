import numpy as np
import pytest

from mlcore.detection.export import generated_pictures, package_versions
from mlcore.detection.metrics import Detections
from mlcore.detection.verification import FreshProcess, check, compare
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


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"classes": detections(1).classes % 3 + 1}, id="classes shifted"),
        pytest.param({"boxes_yxyx": detections(1).boxes_yxyx[:, [1, 0, 3, 2]]}, id="x and y swapped"),
        pytest.param({"boxes_yxyx": detections(1).boxes_yxyx * 0.9}, id="boxes scaled"),
        pytest.param({"scores": detections(1).scores * 0.5}, id="scores halved"),
    ],
)
def test_a_model_that_finds_something_else_is_refused(change: dict) -> None:
    with pytest.raises(
        DataError, match=r"the exported image_bytes agrees with the checkpoint on .* nothing was published"
    ):
        check([detections(1)], {"image_bytes": [changed(detections(1), **change)]})


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
