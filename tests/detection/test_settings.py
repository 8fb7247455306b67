"""What `train` refuses before it loads TensorFlow, and which runs go on with which."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest

from mlcore.data.records import RecordSet
from mlcore.detection.model_directory import ModelDirectory
from mlcore.detection.settings import Settings, check_init_checkpoint, difference, parse_image_size
from mlcore.detection.train import train
from mlcore.runtime.errors import DataError, UsageError

DESCRIPTION: dict[str, Any] = {
    "experiment": "retinanet",
    "preset": "retinanet-mobile",
    "classes": ["a", "b"],
    "data": {"digest": "0123", "images": {"train": 10}},
    "seed": 0,
    "task": {
        "init_checkpoint_modules": "all",
        "model": {"min_level": 3, "input_size": [256, 320, 3]},
        "validation_data": {"global_batch_size": 8},
    },
    "trainer": {
        "train_steps": 500,
        "checkpoint_interval": 100,
        "optimizer_config": {"learning_rate": {"cosine": {"decay_steps": 500, "initial_learning_rate": 0.003}}},
    },
    "runtime": {"mixed_precision_dtype": "float32", "num_gpus": 0},
}


def changed(path: str, value: object) -> dict[str, Any]:
    description = copy.deepcopy(DESCRIPTION)
    node: Any = description
    *parents, last = path.split(".")
    for key in parents:
        node = node[key]
    node[last] = value
    return description


@pytest.mark.parametrize(("text", "size"), [("256x320", (256, 320)), ("512", (512, 512)), (" 64 X 96 ", (64, 96))])
def test_an_image_size_is_height_by_width(text: str, size: tuple[int, int]) -> None:
    assert parse_image_size(text) == size


@pytest.mark.parametrize("text", ["", "axb", "0x3", "1x2x3", "-5", "256x"])
def test_anything_else_is_no_image_size(text: str) -> None:
    with pytest.raises(UsageError, match=r"^--image-size="):
        parse_image_size(text)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("trainer.train_steps", 1000),
        ("trainer.checkpoint_interval", 5),
        ("trainer.optimizer_config.learning_rate.cosine.decay_steps", 1000),
        ("task.validation_data.global_batch_size", 4),
        ("runtime.num_gpus", 4),
        ("preset", None),
        ("data.images", {"train": 11}),
    ],
)
def test_a_run_goes_on_though_this_changed(path: str, value: object) -> None:
    assert difference(DESCRIPTION, changed(path, value)) is None


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("task.model.min_level", 4, "task.model.min_level 3, now 4"),
        ("task.model.input_size", [512, 512, 3], "task.model.input_size.0 256, now 512"),
        ("classes", ["a"], "classes.1 b, now None"),
        ("task.init_checkpoint_modules", ["backbone", "decoder"], "init_checkpoint_modules all, now backbone, decoder"),
        ("data.digest", "4567", "data.digest 0123, now 4567"),
        ("seed", 7, "seed 0, now 7"),
        ("runtime.mixed_precision_dtype", "float16", "mixed_precision_dtype float32, now float16"),
        (
            "trainer.optimizer_config.learning_rate.cosine.initial_learning_rate",
            0.1,
            "initial_learning_rate 0.003, now 0.1",
        ),
    ],
)
def test_a_run_of_something_else_is_told_apart(path: str, value: object, said: str) -> None:
    assert said in (difference(DESCRIPTION, changed(path, value)) or "")


def directory(path: Path, overwrite: bool = False) -> ModelDirectory:
    return ModelDirectory(path, parameters={"steps": 5}, inputs={"data": "0123"}, overwrite=overwrite)


def test_a_directory_of_another_run_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    directory(tmp_path).open(DESCRIPTION, {1: "a", 2: "b"})
    (tmp_path / "ckpt-5.index").write_bytes(b"weights")
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(DataError, match=r"trained with task.model.min_level 3, now 4; .*--overwrite=true") as caught:
        directory(tmp_path).open(changed("task.model.min_level", 4), {1: "a", 2: "b"})
    assert "\n" not in str(caught.value)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_overwriting_removes_the_other_run_and_nothing_else(tmp_path: Path) -> None:
    directory(tmp_path).open(DESCRIPTION, {1: "a", 2: "b"})
    (tmp_path / "ckpt-5.index").write_bytes(b"weights")
    (tmp_path / "best").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    directory(tmp_path, overwrite=True).open(changed("task.model.min_level", 4), {1: "a", 2: "b"})
    assert {file.name for file in tmp_path.iterdir()} == {"notes.txt", "experiment.yaml", "label_map.pbtxt"}


def test_overwriting_does_not_restart_a_run_of_the_same_settings(tmp_path: Path) -> None:
    """A pod that is started again with --overwrite=true goes on where it was."""
    directory(tmp_path, overwrite=True).open(DESCRIPTION, {1: "a", 2: "b"})
    (tmp_path / "ckpt-5.index").write_bytes(b"weights")
    directory(tmp_path, overwrite=True).open(changed("trainer.train_steps", 900), {1: "a", 2: "b"})
    assert (tmp_path / "ckpt-5.index").exists()


def test_checkpoints_of_another_program_are_not_taken_over(tmp_path: Path) -> None:
    (tmp_path / "model.ckpt-7.index").write_bytes(b"weights")
    with pytest.raises(DataError, match=r"no experiment\.yaml"):
        directory(tmp_path).open(DESCRIPTION, {1: "a", 2: "b"})


def test_a_start_that_failed_does_not_bind_the_next(tmp_path: Path) -> None:
    directory(tmp_path).open(DESCRIPTION, {1: "a", 2: "b"})
    (tmp_path / "notes.txt").write_text("mine")
    directory(tmp_path).open(changed("task.model.min_level", 4), {1: "a", 2: "b"})
    assert "min_level: 4" in (tmp_path / "experiment.yaml").read_text() and (tmp_path / "notes.txt").exists()


def test_the_result_of_another_step_is_not_trained_in(tmp_path: Path) -> None:
    (tmp_path / "_SUCCESS.json").write_text('{"step": "convert"}')
    with pytest.raises(UsageError, match=r"^--model-dir=.*: holds the result of the step convert; name another"):
        directory(tmp_path, overwrite=True)


def test_a_finished_run_whose_last_checkpoint_was_damaged_is_not_done(tmp_path: Path) -> None:
    here = directory(tmp_path)
    here.open(DESCRIPTION, {1: "a", 2: "b"})
    for name in ("ckpt-5.index", "ckpt-5.data-00000-of-00001"):
        (tmp_path / name).write_bytes(b"weights")
    here.finish({"steps": 5, "loss": 0.5})
    assert here.finished() is not None
    (tmp_path / "ckpt-5.data-00000-of-00001").write_bytes(b"wei")
    assert here.finished() is None


def test_success_is_there_only_while_training_is_done(tmp_path: Path) -> None:
    here = directory(tmp_path)
    here.open(DESCRIPTION, {1: "a", 2: "b"})
    assert here.finished() is None
    here.finish({"steps": 5, "loss": 0.5, "ap50": float("nan")})
    assert here.finished() is None  # there is no checkpoint of step 5
    (tmp_path / "ckpt-5.index").write_bytes(b"weights")
    results = here.finished()
    assert results is not None
    assert results["loss"] == 0.5
    assert results["ap50"] != results["ap50"]
    here.begin()
    assert here.finished() is None


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"preset": "resnet"}, "--preset=resnet: unknown"),
        ({"experiment": "yolo"}, "--experiment=yolo: unknown"),
        ({"preset": "retinanet-mobile", "experiment": "retinanet"}, "give one of them"),
        ({"image_size": "big"}, "--image-size=big"),
        ({"init_checkpoint": "/nowhere/ckpt-1"}, "--init-checkpoint=/nowhere/ckpt-1: no such checkpoint"),
        ({"metric": "accuracy"}, "--metric=accuracy"),
        ({"data_dir": "/nowhere"}, "--data-dir=/nowhere"),
        ({"steps": 0}, "steps=0"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_wrong_use_is_one_line_and_makes_nothing(
    records_dir: Path, tmp_path: Path, flags: dict[str, Any], expected: str
) -> None:
    with pytest.raises(UsageError) as caught:
        train(**({"data_dir": records_dir, "model_dir": tmp_path / "model"} | flags))
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "model").exists()


def test_a_checkpoint_to_start_from_is_a_prefix_or_a_directory(tmp_path: Path) -> None:
    (tmp_path / "ckpt-5.index").write_bytes(b"")
    check_init_checkpoint(str(tmp_path / "ckpt-5"))
    check_init_checkpoint(str(tmp_path))
    check_init_checkpoint("gs://bucket/ckpt-5")
    with pytest.raises(UsageError, match=r"without \.index"):
        check_init_checkpoint(str(tmp_path / "ckpt-5.index"))


def test_an_experiment_has_no_preset() -> None:
    assert Settings(experiment="retinanet").source() == ("retinanet", None, {})
    assert Settings().source()[:2] == ("retinanet", "retinanet-mobile")


@pytest.fixture(scope="module")
def records(records_dir: Path) -> RecordSet:
    return RecordSet.open(records_dir)


def configured(records: RecordSet, **flags: Any) -> Any:
    from mlcore.detection.settings import configure

    return configure(Settings(**flags), records)


@pytest.mark.slow
def test_a_configuration_fits_the_data_and_a_cpu(records: RecordSet) -> None:
    config = configured(records, experiment="fasterrcnn_resnetfpn_coco")
    assert config.task.model.num_classes == 3  # two and the background
    assert config.task.init_checkpoint == ""
    assert config.task.annotation_file is None
    assert config.runtime.mixed_precision_dtype == "float32"
    assert (config.task.train_data.dtype, config.task.validation_data.dtype) == ("float32", "float32")
    assert config.task.validation_data.drop_remainder is False


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({}, 0.003),
        ({"batch_size": 32}, 0.006),  # Adam: the square root
        ({"batch_size": 32, "learning_rate": 0.001}, 0.001),
        ({"preset": "retinanet-resnet50", "batch_size": 4}, 0.005),  # SGD: in proportion
        ({"experiment": "retinanet", "image_size": "256", "steps": 9, "batch_size": 2}, 0.01),
    ],
    ids=str,
)
def test_the_learning_rate_follows_the_batch_unless_given(
    records: RecordSet, flags: dict[str, Any], expected: float
) -> None:
    schedule = configured(records, **flags).trainer.optimizer_config.learning_rate.cosine
    assert schedule.initial_learning_rate == pytest.approx(expected)


@pytest.mark.slow
def test_the_schedule_is_fitted_to_the_steps(records: RecordSet) -> None:
    config = configured(records, steps=40)
    optimization = config.trainer.optimizer_config
    assert optimization.learning_rate.cosine.decay_steps == config.trainer.train_steps == 40
    assert optimization.warmup.linear.warmup_steps == 8
    assert config.trainer.checkpoint_interval == 40
    stepwise = configured(records, experiment="fasterrcnn_resnetfpn_coco", steps=225)
    assert list(stepwise.trainer.optimizer_config.learning_rate.stepwise.boundaries) == [150, 200]


@pytest.mark.slow
def test_a_number_with_an_exponent_is_a_number(records: RecordSet) -> None:
    """YAML 1.1 takes 1e-3 for text."""
    losses = {"l2_weight_decay": "1e-3"}
    assert configured(records, overrides={"task": {"losses": losses}}).task.losses.l2_weight_decay == 0.001


@pytest.mark.slow
def test_overrides_win_over_flags(records: RecordSet) -> None:
    config = configured(records, batch_size=2, overrides={"task": {"train_data": {"global_batch_size": 16}}})
    assert config.task.train_data.global_batch_size == 16


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "error", "expected"),
    [
        ({"image_size": "250x320"}, UsageError, "expected multiples of 32 .*such as 256x320"),
        ({"overrides": {"task": {"model": {"num_classes": 2}}}}, UsageError, "expected at least 3"),
        ({"overrides": {"model": {}}}, UsageError, "unknown section"),
        ({"overrides": {"task": {"model": {"min_level": [1]}}}}, UsageError, r"min_level=\[1\]: expected a number"),
        ({"overrides": {"task": {"model": {"input_size": 3}}}}, UsageError, "input_size=3: expected a list"),
        ({"overrides": {"task": {"freeze_backbone": 1}}}, UsageError, "freeze_backbone=1: expected true or false"),
        ({"experiment": "retinanet"}, UsageError, "--steps"),
        ({"preset": "maskrcnn-resnet50"}, DataError, "no masks"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_what_does_not_fit_is_said_before_anything_is_made(
    records: RecordSet, flags: dict[str, Any], error: type[Exception], expected: str
) -> None:
    with pytest.raises(error, match=expected):
        configured(dataclasses.replace(records, has_masks=False), **flags)


@pytest.mark.slow
@pytest.mark.parametrize(
    "setting",
    [
        "task.model.backbone.type=bogus", "task.model.decoder.type=bogus", "task.model.anchor.num_scales=0",
        "trainer.optimizer_config.learning_rate.type=bogus", "trainer.optimizer_config.optimizer.type=bogus",
        "task.train_data.dtype=bogus", "task.model.head.num_filters=0", "task.model.max_level=2",
        "task.model.norm_activation.activation=bogus", "trainer.max_to_keep=0",
        "runtime.mixed_precision_dtype=bogus", "task.train_data.file_type=foo", "task.train_data.global_batch_size=0",
    ],
)  # fmt: skip
def test_a_value_that_official_vision_cannot_use_is_wrong_use(records: RecordSet, tmp_path: Path, setting: str) -> None:
    from mlcore.detection.run import run
    from mlcore.runtime.parameters import parameters_of

    overrides = next(entry for entry in parameters_of(train) if entry.name == "overrides").convert_all(setting, "")
    settings = Settings(image_size="64", steps=1, batch_size=1, eval_interval=0, overrides=overrides)
    with pytest.raises(UsageError, match=setting.partition("=")[0].replace(".", r"\.")):
        run(directory(tmp_path), records, settings, metric="coco_ap", patience=0, seed=0, deterministic=None,
            strategy_name="auto")  # fmt: skip


@pytest.mark.slow
def test_settings_whose_place_a_flag_has_taken_are_told(records: RecordSet, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("WARNING", "mlcore")
    configured(records, overrides={"task": {"train_data": {"input_path": "/nope"}}})
    assert "task.train_data.input_path is not used here; the records are those of --data-dir" in caplog.text
