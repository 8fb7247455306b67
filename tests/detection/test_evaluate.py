import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from mlcore.data import example
from mlcore.data.records import RecordSet
from mlcore.data.tfrecord import read_records
from mlcore.detection.detectors import evaluate_split
from mlcore.detection.evaluate import EvaluateResult, _check_classes, evaluate
from mlcore.detection.metrics import MASK_PREFIX, SUMMARY, Detections, GroundTruth
from mlcore.detection.truth import read_truth
from mlcore.runtime.errors import DataError, UsageError
from mlcore.serving.version_directory import LABEL_MAP


class Oracle:
    """A detector that knows the truth of each picture: what evaluation must give full marks."""

    def __init__(self, records: RecordSet, split: str, has_masks: bool) -> None:
        self.has_masks = has_masks
        self.batches: list[int] = []
        self._truths: dict[bytes, GroundTruth] = {}
        for shard in records.shards(split):
            for record in read_records(shard):
                truth, image = read_truth(record)
                self._truths[image] = truth

    def detect(self, images: list[bytes]) -> list[Detections]:
        self.batches.append(len(images))
        return [self._of(self._truths[image]) for image in images]

    def _of(self, truth: GroundTruth) -> Detections:
        count = len(truth.classes)
        return Detections(
            boxes_yxyx=truth.boxes_yxyx.astype(np.float32),
            scores=np.full(count, 0.9, np.float32),
            classes=truth.classes,
            masks=np.ones((count, 28, 28), np.float32) if self.has_masks else None,
        )


@pytest.mark.parametrize("batch_size", [1, 5, 100])
def test_every_image_of_a_split_is_counted_once_whatever_the_batch(records_dir: Path, batch_size: int) -> None:
    records = RecordSet.open(records_dir)
    oracle = Oracle(records, "train", has_masks=False)
    metrics = evaluate_split(oracle, records.split("train"), records.classes, batch_size=batch_size)
    assert metrics.images == sum(oracle.batches) == records.count("train")
    assert metrics.compute()["coco_ap"] == pytest.approx(1.0)


def test_masks_are_measured_where_the_model_has_them(records_dir: Path) -> None:
    records = RecordSet.open(records_dir)
    metrics = evaluate_split(Oracle(records, "train", has_masks=True), records.split("train"), records.classes)
    table = metrics.compute_per_class()
    assert table["square"]["mask_ap50"] == pytest.approx(1.0)  # a whole box is a square
    assert metrics.compute()["mask_ar_100_detections"] < 1.0  # and no circle


def test_the_first_images_alone_can_be_evaluated(records_dir: Path) -> None:
    records = RecordSet.open(records_dir)
    oracle = Oracle(records, "train", has_masks=False)
    metrics = evaluate_split(oracle, records.split("train"), records.classes, batch_size=2, max_images=3)
    assert (metrics.images, oracle.batches) == (3, [2, 1])


def test_the_truth_is_read_with_boxes_classes_and_masks(records_dir: Path) -> None:
    record = next(read_records(RecordSet.open(records_dir).shards("test")[0]))
    truth, image = read_truth(record)
    features = example.decode(record)
    assert (truth.height, truth.width) == (64, 96)
    assert truth.boxes_yxyx[0].tolist() == [features[f"image/object/bbox/{side}"][0] for side in
                                            ("ymin", "xmin", "ymax", "xmax")]  # fmt: skip
    assert truth.masks_png[0].startswith(b"\x89PNG")
    assert image.startswith(b"\xff\xd8")


def test_a_record_without_what_is_needed_is_named() -> None:
    record = example.encode(
        bytes_lists={"image/encoded": [b"x"], "image/source_id": [b"17"]}, float_lists={}, int64_lists={}
    )
    with pytest.raises(DataError, match="the record 17 has no image/height"):
        read_truth(record)
    with pytest.raises(DataError, match=r"is no tf\.train\.Example"):
        read_truth(b"\xff\xff\xff")
    uneven = example.encode(
        bytes_lists={"image/encoded": [b"x"], "image/source_id": [b"18"]},
        float_lists={"image/object/bbox/xmin": [0.5]},
        int64_lists={"image/height": [4], "image/width": [4], "image/object/class/label": [1]},
    )
    with pytest.raises(DataError, match="the record 18 has 1 labels"):
        read_truth(uneven)


def test_one_model_must_be_given(records_dir: Path, tmp_path: Path) -> None:
    for options in ({}, {"model_dir": tmp_path, "model": tmp_path}):
        with pytest.raises(UsageError, match=r"one of --model-dir .* and --model .* must be given"):
            evaluate(data_dir=records_dir, **options)


def test_what_is_missing_is_named_before_tensorflow_is_loaded(records_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"--data-dir={tmp_path}/no: no such folder"):
        evaluate(data_dir=tmp_path / "no", model_dir=tmp_path)
    with pytest.raises(UsageError, match="no split holdout; there is train, val, test"):
        evaluate(data_dir=records_dir, split="holdout", model_dir=tmp_path)
    with pytest.raises(UsageError, match=f"--model-dir={tmp_path}/no: no such directory"):
        evaluate(data_dir=records_dir, model_dir=tmp_path / "no")
    with pytest.raises(DataError, match=r"no experiment\.yaml"):
        evaluate(data_dir=records_dir, model_dir=tmp_path)
    with pytest.raises(UsageError, match="holds no SavedModel"):
        evaluate(data_dir=records_dir, model=tmp_path)


def test_classes_that_differ_are_an_error() -> None:
    model = {1: "cat", 2: "dog"}
    _check_classes({2: "dog"}, model, Path("data"), Path("model"))
    with pytest.raises(DataError, match="class 1 is 'dog', but model calls it 'cat'"):
        _check_classes({1: "dog"}, model, Path("data"), Path("model"))
    with pytest.raises(DataError, match="class 3 is 'cow', but model has no such class"):
        _check_classes({3: "cow"}, model, Path("data"), Path("model"))


def test_results_have_the_names_of_the_metrics() -> None:
    names = set(EvaluateResult.__dataclass_fields__)
    assert set(SUMMARY) <= names
    assert {name for name in names if name.startswith(MASK_PREFIX)} <= {MASK_PREFIX + name for name in SUMMARY}
    assert json.dumps(sorted(names))


def test_an_output_that_cannot_be_written_is_known_before_the_work(records_dir: Path, tmp_path: Path) -> None:
    export = tmp_path / "model" / "1"
    (export / "variables").mkdir(parents=True)
    (export / LABEL_MAP).parent.mkdir()
    shutil.copy(records_dir / "label_map.pbtxt", export / LABEL_MAP)
    (export / "saved_model.pb").write_bytes(b"no model, and nobody gets as far as to notice")
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"output-dir=.*cannot be written"):
        evaluate(data_dir=records_dir, model=export, output_dir=tmp_path / "file" / "out")
