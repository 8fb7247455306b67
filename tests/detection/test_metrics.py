import io
import math
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from mlcore.detection.metrics import (
    MASK_PREFIX,
    SUMMARY,
    CocoMetrics,
    Detections,
    GroundTruth,
    format_table,
    paste_mask,
)
from mlcore.runtime.errors import DataError

CLASSES = {1: "cat", 2: "dog", 3: "never seen"}


def truth(source_id="1", boxes=((0.1, 0.1, 0.5, 0.5),), classes=(1,), size=(100, 200), **more) -> GroundTruth:
    return GroundTruth(
        source_id=source_id,
        height=size[0],
        width=size[1],
        boxes_yxyx=np.array(boxes, np.float32).reshape(-1, 4),
        classes=np.array(classes, int),
        **more,
    )


def found(boxes=(), scores=(), classes=(), masks=None) -> Detections:
    return Detections(
        boxes_yxyx=np.array(boxes, np.float32).reshape(-1, 4),
        scores=np.array(scores, np.float32),
        classes=np.array(classes, int),
        masks=masks,
    )


def same_as(objects: GroundTruth, score: float = 0.9) -> Detections:
    return found(objects.boxes_yxyx, [score] * len(objects.classes), objects.classes)


def png(mask: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8) * 255).save(buffer, "png")
    return buffer.getvalue()


def random_data(seed: int, images: int = 30) -> list[tuple[GroundTruth, Detections]]:
    """Boxes and detections that are near some of them, with distinct scores."""
    generator = np.random.default_rng(seed)
    data = []
    for number in range(images):
        count = int(generator.integers(0, 6))
        low = generator.uniform(0, 0.6, (count, 2))
        boxes = np.concatenate([low, low + generator.uniform(0.02, 0.4, (count, 2))], axis=1)
        classes = generator.integers(1, 3, count)
        objects = truth(str(1000 - number), boxes, classes, (int(generator.integers(100, 400)), 300))
        shifted = np.clip(boxes + generator.normal(0, 0.02, boxes.shape), 0, 1)
        low = generator.uniform(0, 0.6, (3, 2))
        noise = np.concatenate([low, low + 0.2], axis=1)
        everything = np.concatenate([shifted, noise])
        labels = np.concatenate([classes, generator.integers(1, 3, 3)])
        order = np.argsort(scores := generator.uniform(0, 1, len(labels)))[::-1]
        data.append((objects, found(everything[order], scores[order], labels[order])))
    return data


def evaluate(data, **options) -> CocoMetrics:
    metrics = CocoMetrics(CLASSES, **options)
    for objects, detections in data:
        metrics.add(objects, detections)
    return metrics


def test_a_perfect_detector_has_an_average_precision_of_one() -> None:
    data = [truth(str(n), [[0.1, 0.1, 0.3, 0.3], [0.5, 0.5, 1, 1]], [1, 2]) for n in range(5)]
    summary = evaluate([(objects, same_as(objects)) for objects in data]).compute()
    assert summary["coco_ap"] == summary["ap50"] == summary["ar_100_detections"] == pytest.approx(1.0)


def test_a_detector_that_finds_nothing_has_an_average_precision_of_zero() -> None:
    summary = evaluate([(truth(), found())]).compute()
    assert summary["coco_ap"] == summary["ap50"] == summary["ar_100_detections"] == 0.0


def test_the_wrong_class_is_no_match() -> None:
    objects = truth()
    assert evaluate([(objects, found(objects.boxes_yxyx, [1.0], [2]))]).compute()["ap50"] == 0.0


def test_a_box_shifted_by_a_third_counts_at_an_overlap_of_a_half_only() -> None:
    objects = truth(boxes=[[0, 0, 0.3, 1]], size=(300, 100))
    summary = evaluate([(objects, found([[0.1, 0, 0.3, 1]], [0.9], [1]))]).compute()  # IoU 2/3
    assert summary["ap50"] == pytest.approx(1.0)
    assert summary["ap75"] == 0.0
    assert summary["coco_ap"] == pytest.approx(0.4)  # .50, .55, .60, .65 of ten


def test_sizes_are_those_in_pixels_of_the_original_image() -> None:
    small, large = truth("1", [[0, 0, 0.1, 0.1]], size=(100, 100)), truth("2", [[0, 0, 0.1, 0.1]], size=(2000, 2000))
    summary = evaluate([(small, same_as(small)), (large, found())]).compute()
    assert (summary["ap_small"], summary["ap_large"]) == (pytest.approx(1.0), 0.0)


def test_what_cannot_be_measured_is_nan() -> None:
    objects = truth(boxes=[[0, 0, 0.1, 0.1]], size=(100, 100))
    metrics = evaluate([(objects, same_as(objects))])
    assert math.isnan(metrics.compute()["ap_large"])
    assert math.isnan(metrics.compute_per_class()["never seen"]["coco_ap"])
    assert all(math.isnan(value) for value in CocoMetrics(CLASSES).compute().values())


def test_per_class_metrics_average_to_the_whole() -> None:
    metrics = evaluate(random_data(1))
    table = metrics.compute_per_class()
    assert set(table) == set(CLASSES.values())
    for name in ("coco_ap", "ap50", "ar_100_detections"):
        assert np.nanmean([row[name] for row in table.values()]) == pytest.approx(metrics.compute()[name])
    assert sum(row["objects"] for row in table.values()) == sum(len(one.classes) for one, _ in random_data(1))


def test_the_order_of_the_images_does_not_matter() -> None:
    data = random_data(2)
    assert evaluate(data).compute() == evaluate(data[::-1]).compute()


def test_images_without_objects_and_crowds_are_counted_as_coco_does() -> None:
    crowd = truth("2", [[0, 0, 1, 1]], [1], is_crowd=[True])
    data = [(truth(), same_as(truth())), (crowd, found([[0.2, 0.2, 0.4, 0.4]], [0.95], [1]))]
    metrics = evaluate(data)
    assert metrics.compute()["ap50"] == pytest.approx(1.0)  # within a crowd: neither right nor wrong
    assert metrics.compute_per_class()["cat"]["objects"] == 1
    data.append((truth("3", (), ()), found([[0, 0, 1, 1]], [0.99], [1])))
    assert evaluate(data).compute()["ap50"] == pytest.approx(0.5)  # a false alarm on an empty image


def test_two_images_of_the_same_id_are_an_error() -> None:
    metrics = evaluate([(truth("7"), found())])
    with pytest.raises(DataError, match="two images have the source_id 7"):
        metrics.add(truth("7"), found())


def test_masks_are_measured_beside_boxes() -> None:
    mask = np.zeros((100, 200), bool)
    mask[10:50, 20:100] = True
    objects = truth(masks_png=[png(mask)])
    whole = found(objects.boxes_yxyx, [0.9], [1], np.ones((1, 28, 28), np.float32))
    half = np.ones((1, 28, 28), np.float32)
    half[:, 14:] = 0
    assert evaluate([(objects, whole)], masks=True).compute()["mask_ap75"] == pytest.approx(1.0)
    summary = evaluate([(objects, found(objects.boxes_yxyx, [0.9], [1], half))], masks=True).compute()
    assert summary["ap75"] == pytest.approx(1.0)
    assert summary["mask_ap75"] == 0.0


def test_an_object_without_a_mask_is_an_error_where_masks_are_measured() -> None:
    with pytest.raises(DataError, match="1 objects and 0 masks"):
        evaluate([(truth(), found())], masks=True)
    with pytest.raises(DataError, match=r"mask 0 has the shape \(4, 4\)"):
        evaluate([(truth(masks_png=[png(np.ones((4, 4)))]), found())], masks=True)


def test_a_mask_is_pasted_where_its_box_is_and_cut_at_the_edge() -> None:
    pasted = paste_mask(np.ones((14, 14)), [90, 40, 20, 20], 100, 100)
    assert pasted.shape == (100, 100)
    assert pasted[45:55, 95:].all()
    assert not pasted[:, :85].any()
    assert not paste_mask(np.ones((14, 14)), [200, 200, 20, 20], 100, 100).any()


def test_no_name_is_the_prefix_of_another() -> None:
    names = [*SUMMARY, *(MASK_PREFIX + name for name in SUMMARY)]
    assert not [(one, two) for one in names for two in names if one != two and two.startswith(one)]


def test_nothing_is_printed_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    evaluate(random_data(3)).compute()
    assert capsys.readouterr().out == ""


def test_the_table_has_a_line_for_each_class_and_one_for_all() -> None:
    metrics = evaluate(random_data(4))
    lines = format_table(metrics.compute(), metrics.compute_per_class(), images=metrics.images).splitlines()
    assert [line.split("  ")[0] for line in lines[1:5]] == ["cat", "dog", "never seen", "all"]
    assert f"{metrics.compute()['ap50']:.4f}" in lines[4]
    assert lines[-1].startswith("30 images")


def test_tensorflow_is_not_needed() -> None:
    program = "import sys, mlcore.detection.metrics, mlcore.detection.truth; assert 'tensorflow' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.slow
def test_the_numbers_are_those_of_official_vision() -> None:
    from mlcore.detection.tensorflow import import_tensorflow

    tf = import_tensorflow()
    from official.vision.evaluation.coco_evaluator import COCOEvaluator

    data = random_data(5, images=40)
    peer = COCOEvaluator(annotation_file=None, include_mask=False, need_rescale_bboxes=False)
    for objects, detections in data:
        scale = np.array([objects.height, objects.width] * 2)
        count = len(objects.classes)
        area = np.prod((objects.boxes_yxyx[:, 2:] - objects.boxes_yxyx[:, :2]) * scale[:2], axis=1)
        theirs = {
            "source_id": np.array([int(objects.source_id)]),
            "height": np.array([objects.height]),
            "width": np.array([objects.width]),
            "num_detections": np.array([count]),
            "boxes": padded(objects.boxes_yxyx * scale, 10),
            "classes": padded(objects.classes, 10),
            "areas": padded(area, 10),
            "is_crowds": np.zeros((1, 10), int),
        }
        answers = {
            "source_id": theirs["source_id"],
            "num_detections": np.array([len(detections.scores)]),
            "detection_boxes": padded(detections.boxes_yxyx * scale, 100),
            "detection_scores": padded(detections.scores, 100),
            "detection_classes": padded(detections.classes, 100),
        }
        peer.update_state(tf.nest.map_structure(tf.constant, theirs), tf.nest.map_structure(tf.constant, answers))
    expected = peer.result()
    summary = evaluate(data).compute()
    pairs = {"coco_ap": "AP", "ap50": "AP50", "ap75": "AP75", "ap_small": "APs", "ap_medium": "APm", "ap_large": "APl",
             "ar_1_detection": "ARmax1", "ar_10_detections": "ARmax10", "ar_100_detections": "ARmax100",
             "ar_small": "ARs", "ar_medium": "ARm", "ar_large": "ARl"}  # fmt: skip
    assert 0.2 < summary["ap50"] < 0.95
    for ours, name in pairs.items():
        assert summary[ours] == pytest.approx(expected[name], abs=1e-4), ours


@pytest.mark.slow
def test_masks_are_pasted_as_official_vision_does() -> None:
    from mlcore.detection.tensorflow import import_tensorflow

    import_tensorflow()
    from official.vision.ops.mask_ops import paste_instance_masks

    generator = np.random.default_rng(0)
    for _ in range(20):
        mask = generator.uniform(0, 1, (28, 28)).astype(np.float32)
        box = np.array([*generator.uniform(-10, 80, 2), *generator.uniform(1, 60, 2)])
        expected = paste_instance_masks(mask[np.newaxis], box[np.newaxis].copy(), 90, 100)[0]
        assert (paste_mask(mask, box, 90, 100) == expected).all()


def padded(values: np.ndarray, count: int) -> np.ndarray:
    """(1, count, ...) with zeros behind."""
    values = np.asarray(values)
    out = np.zeros((1, count, *values.shape[1:]), values.dtype if values.dtype.kind == "i" else np.float32)
    out[0, : len(values)] = values
    return out
