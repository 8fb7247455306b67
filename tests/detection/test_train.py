"""`mlcore train` as a process: short real runs of every kind of model, stops, faults, resuming."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import yaml

from mlcore.detection.checkpoints import list_checkpoints
from mlcore.detection.summaries import TRAIN, VALIDATION
from mlcore.runtime.outputs import read_success
from mlcore.runtime.parameters import merge

pytestmark = pytest.mark.slow

# As small as each model can be, so that a run is mostly TensorFlow's start.
SMALL_MODEL = {
    "backbone": {"mobilenet": {"filter_size_scale": 0.35}},
    "decoder": {"fpn": {"num_filters": 16}},
    "head": {"num_convs": 1, "num_filters": 16},
}
SMALL_RETINANET: dict[str, object] = {
    "task": {"model": SMALL_MODEL, "train_data": {"global_batch_size": 4}},
    "trainer": {"summary_interval": 2},
}
SMALL_RCNN: dict[str, object] = {
    "task": {
        "model": {
            "min_level": 3,
            "max_level": 5,
            "backbone": {"type": "mobilenet", "mobilenet": {"model_id": "MobileNetV2", "filter_size_scale": 0.35}},
            "decoder": {"type": "fpn", "fpn": {"num_filters": 16, "use_separable_conv": True}},
            "rpn_head": {"num_filters": 16},
            "detection_head": {"num_convs": 1, "num_filters": 16, "fc_dims": 32},
            "roi_generator": {
                "pre_nms_top_k": 50,
                "num_proposals": 20,
                "test_pre_nms_top_k": 50,
                "test_num_proposals": 20,
            },
            "roi_sampler": {"num_sampled_rois": 16},
            "norm_activation": {"activation": "relu6", "norm_momentum": 0.9},
        },
        "train_data": {"global_batch_size": 2},
    },
    "trainer": {"summary_interval": 2},
}
SMALL_MASK_HEAD: dict[str, object] = {"task": {"model": {"mask_head": {"num_convs": 1, "num_filters": 16}}}}


class Training:
    """One `mlcore train` in a process of its own."""

    def __init__(self, records: Path, model_dir: Path, *flags: str, config: Sequence[dict[str, object]] = ()) -> None:
        self.model_dir = model_dir
        sections: dict[str, object] = {}
        for part in config or [SMALL_RETINANET]:
            sections = merge(sections, part)
        file = model_dir.with_name(f"{model_dir.name}.yaml")
        file.write_text(yaml.safe_dump(sections))
        command = [
            sys.executable, "-m", "mlcore", "train", f"--data-dir={records}", f"--model-dir={model_dir}",
            f"--config={file}", "--image-size=64x96", *flags,
        ]  # fmt: skip
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )

    def wait(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=300)
        return self.process.returncode, out, err

    def succeed(self) -> str:
        code, out, err = self.wait()
        assert code == 0, err
        return out

    def wait_for_checkpoint(self, step: int) -> None:
        deadline = time.monotonic() + 120
        while step not in list_checkpoints(self.model_dir):
            assert self.process.poll() is None, self.process.communicate()[1]
            assert time.monotonic() < deadline, "no checkpoint after two minutes"
            time.sleep(0.05)


def results(out: str) -> dict[str, str]:
    """The last value of each name on stdout."""
    return dict(re.findall(r"^(?:\S+Z )?(\w+)=(\S+)$", out, re.MULTILINE))


def tags(folder: Path) -> set[str]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    found = events.Tags()
    return {*found["scalars"], *found["tensors"]}


@pytest.fixture(scope="module")
def trained(records_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small RetinaNet after 8 steps, with two evaluations."""
    model = tmp_path_factory.mktemp("trained") / "model"
    out = Training(records_dir, model, "--steps=8", "--eval-interval=4", "--checkpoint-interval=2").succeed()
    assert results(out)["steps"] == "8"
    (model.parent / "out.txt").write_text(out)
    return model


def test_a_finished_run_is_described(trained: Path) -> None:
    success = read_success(trained)
    assert success is not None
    assert success["step"] == "train"
    assert success["results"]["steps"] == 8
    assert success["inputs"]["data"]
    description = yaml.safe_load((trained / "experiment.yaml").read_text())
    assert description["classes"] == ["circle", "square"]
    assert description["task"]["model"]["num_classes"] == 3
    assert "circle" in (trained / "label_map.pbtxt").read_text()


def test_the_last_checkpoints_and_the_best_one_are_kept(trained: Path) -> None:
    assert list(list_checkpoints(trained)) == [4, 6, 8]
    best = json.loads((trained / "best/best.json").read_text())
    assert best["metric"] == "coco_ap"
    assert list(list_checkpoints(trained / "best")) == [best["step"]]


def test_losses_are_lines_for_katib(trained: Path) -> None:
    out = (trained.parent / "out.txt").read_text()
    losses = re.findall(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ loss=(\d+\.\d+)$", out, re.MULTILINE)
    assert len(losses) >= 4
    assert all(math.isfinite(float(loss)) for loss in losses)
    assert "ap50=" in out


def test_no_tag_of_a_summary_is_the_prefix_of_another(trained: Path) -> None:
    for folder, some in ((TRAIN, "total_loss"), (VALIDATION, "ap50")):
        found = tags(trained / folder)
        assert some in found
        assert not [(a, b) for a in found for b in found if a != b and b.startswith(a)]


def test_the_same_command_again_is_done_at_once(trained: Path, records_dir: Path) -> None:
    before = sorted((file.name, file.stat().st_mtime_ns) for file in trained.iterdir())
    started = time.monotonic()
    again = Training(records_dir, trained, "--steps=8", "--eval-interval=4", "--checkpoint-interval=2")
    code, out, err = again.wait()
    assert code == 0
    assert "up to date" in err
    assert results(out)["steps"] == "8"
    assert time.monotonic() - started < 5  # TensorFlow was not even loaded
    assert sorted((file.name, file.stat().st_mtime_ns) for file in trained.iterdir()) == before


def test_more_steps_go_on_and_other_settings_are_refused(trained: Path, records_dir: Path, tmp_path: Path) -> None:
    import shutil

    model = tmp_path / "model"
    shutil.copytree(trained, model)
    refused = Training(records_dir, model, "--steps=8", "--scale-max=2.0")
    more = Training(records_dir, (tmp_path / "more"), "--steps=8")  # keeps both cores busy while the other starts
    code, _, err = refused.wait()
    assert code == 65
    assert "aug_scale_max 1.2, now 2.0" in err
    assert "Traceback" not in err
    more.succeed()
    code, out, err = Training(records_dir, model, "--steps=12", "--eval-interval=0").wait()
    assert code == 0, err
    assert "resuming from" in err
    assert "ckpt-8" in err
    assert results(out)["steps"] == "12"


KINDS: dict[str, tuple[list[str], list[dict[str, object]]]] = {
    "faster-rcnn": (["--experiment=fasterrcnn_resnetfpn_coco"], [SMALL_RCNN]),
    "mask-rcnn": (["--experiment=maskrcnn_resnetfpn_coco"], [SMALL_RCNN, SMALL_MASK_HEAD]),
    "cascade-rcnn": (
        ["--experiment=cascadercnn_spinenet_coco", "--overrides=task.model.include_mask=false"],
        [SMALL_RCNN],
    ),
    "retinanet with mixed precision and RandAugment": (
        ["--preset=retinanet-mobilenet", "--mixed-precision=bfloat16", "--augmentation=randaug"],
        [SMALL_RETINANET, {"task": {"model": {"max_level": 5}}}],
    ),
}


@pytest.fixture(scope="module")
def kinds(records_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, tuple[int, str, str]]]:
    """Kind of model -> its directory after three steps, and how the process ended; two at a time."""
    root = tmp_path_factory.mktemp("kinds")

    def train(kind: str) -> tuple[Path, tuple[int, str, str]]:
        flags, config = KINDS[kind]
        model = root / kind.partition(" ")[0]
        common = ("--steps=3", "--learning-rate=0.001", "--clip-norm=1")
        return model, Training(records_dir, model, *common, *flags, config=config).wait()

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(KINDS, pool.map(train, KINDS), strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model_trains_and_evaluates(
    kinds: dict[str, tuple[Path, tuple[int, str, str]]], kind: str
) -> None:
    model, (code, out, err) = kinds[kind]
    assert code == 0, err
    found = results(out)
    assert found["steps"] == "3"
    assert 0 < float(found["loss"]) < 100
    assert 0 <= float(found["ap50"]) <= 1
    assert {"total_loss", "learning_rate"} <= tags(model / "train")


def test_a_model_that_has_learnt_next_to_nothing_is_exported(
    kinds: dict[str, tuple[Path, tuple[int, str, str]]], tmp_path: Path
) -> None:
    """Its scores are nearly the same, so that rounding errors decide about many of its detections."""
    from mlcore.detection.export import export
    from mlcore.serving.version_directory import read_card

    result = export(model_dir=kinds["faster-rcnn"][0], output_dir=tmp_path)
    assert read_card(result.path)["verification"]["share"] >= 0.98


def test_a_killed_run_resumes_from_its_newest_good_checkpoint(records_dir: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    flags = ("--steps=4000", "--checkpoint-interval=5", "--eval-interval=0")
    training = Training(records_dir, model, *flags)
    training.wait_for_checkpoint(15)
    training.process.kill()
    training.process.communicate()
    assert read_success(model) is None
    newest = max(list_checkpoints(model))
    data = model / f"ckpt-{newest}.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:-500])

    code, out, err = Training(records_dir, model, f"--steps={newest + 5}", *flags[1:]).wait()
    assert code == 0, err
    assert f"ckpt-{newest} is damaged" in err
    assert f"resuming from {model}/ckpt-{newest - 5}" in err
    assert results(out)["steps"] == str(newest + 5)
    assert (model / f"damaged-ckpt-{newest}.index").exists()  # what was there is not lost
    assert read_success(model) is not None


def test_sigterm_saves_a_checkpoint_and_ends_with_143(records_dir: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    training = Training(records_dir, model, "--steps=4000", "--checkpoint-interval=10", "--eval-interval=0")
    training.wait_for_checkpoint(10)
    started = time.monotonic()
    training.process.send_signal(signal.SIGTERM)
    code, _, err = training.wait()
    assert code == 143, err
    assert time.monotonic() - started < 10
    stopped = re.search(r"stopped after step (\d+) by SIGTERM", err)
    assert stopped, err
    assert max(list_checkpoints(model)) == int(stopped[1])
    assert read_success(model) is None


def test_sigterm_in_the_last_evaluation_ends_at_once_and_the_next_run_makes_up_for_it(
    records_dir: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    training = Training(records_dir, model, "--steps=1")
    training.wait_for_checkpoint(1)
    started = time.monotonic()
    training.process.send_signal(signal.SIGTERM)
    code, _, err = training.wait()
    assert code == 143, err
    assert time.monotonic() - started < 10
    assert read_success(model) is None
    code, out, err = Training(records_dir, model, "--steps=1").wait()
    assert code == 0, err
    assert results(out)["best_step"] == "1"
    assert read_success(model) is not None


def test_a_loss_that_is_not_finite_stops_with_the_images_and_the_last_checkpoint(
    records_dir: Path, tmp_path: Path
) -> None:
    training = Training(
        records_dir, tmp_path / "model", "--steps=50", "--learning-rate=1e30", "--schedule=constant",
        "--warmup-steps=0", "--eval-interval=0", "--checkpoint-interval=1",
    )  # fmt: skip
    code, _, err = training.wait()
    assert code == 65, err
    line = err.strip().splitlines()[-1]
    assert re.search(r"step 2: the loss is (nan|inf), on the images with source ids \d+ \(\w+\.jpg\), ", line), line
    assert f"last good checkpoint: {tmp_path}/model/ckpt-1;" in line
    assert read_success(tmp_path / "model") is None


def test_weights_of_another_number_of_classes_are_a_start(trained: Path, records_dir: Path, tmp_path: Path) -> None:
    start = f"--init-checkpoint={trained}"
    more_classes = "--overrides=task.model.num_classes=9"
    taken = Training(records_dir, tmp_path / "taken", "--steps=1", "--eval-interval=0", start, more_classes)
    refused = Training(records_dir, tmp_path / "not", "--steps=1", start, more_classes, "--init-modules=all")
    code, _, err = taken.wait()
    assert code == 0, err
    assert f"weights from {trained}/ckpt-8" in err
    code, _, err = refused.wait()
    assert code == 2
    assert "--init-checkpoint=" in err
    assert "Traceback" not in err


def test_training_stops_early_without_progress(records_dir: Path, tmp_path: Path) -> None:
    training = Training(
        records_dir, tmp_path / "model", "--steps=400", "--eval-interval=1", "--patience=2", "--learning-rate=0",
        "--checkpoint-interval=1",
    )  # fmt: skip
    found = results(training.succeed())
    assert found["stopped_early"] == "true"
    assert int(found["steps"]) < 20


def test_the_same_seed_gives_the_same_weights_also_in_two_goes(records_dir: Path, tmp_path: Path) -> None:
    flags = ("--eval-interval=0", "--schedule=constant", "--warmup-steps=0")
    whole = Training(records_dir, tmp_path / "whole", "--steps=5", *flags, "--seed=3")
    other = Training(records_dir, tmp_path / "other", "--steps=5", *flags, "--seed=4")
    first = Training(records_dir, tmp_path / "parts", "--steps=2", *flags, "--seed=3")
    first.succeed()
    second = Training(records_dir, tmp_path / "parts", "--steps=5", *flags, "--seed=3")
    losses = {run.model_dir.name: float(results(run.succeed())["loss"]) for run in (whole, other, second)}
    assert losses["whole"] != losses["other"]
    weights = {name: weights_at(tmp_path / name, 5) for name in losses}
    assert weights["whole"] == weights["parts"]
    assert weights["whole"] != weights["other"]


def weights_at(model_dir: Path, step: int) -> dict[str, bytes]:
    """Variable -> its bytes in a checkpoint."""
    import tensorflow as tf

    reader = tf.train.load_checkpoint(str(model_dir / f"ckpt-{step}"))
    names = [
        name for name in reader.get_variable_to_shape_map() if "OBJECT_GRAPH" not in name and "counter" not in name
    ]
    return {name: np.asarray(reader.get_tensor(name)).tobytes() for name in names}


def test_two_devices_share_the_batch(records_dir: Path, tmp_path: Path) -> None:
    """MirroredStrategy, on two logical CPU devices for want of GPUs."""
    program = f"""
import tensorflow as tf
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2)
import yaml
from pathlib import Path
from mlcore.detection.train import train
common = dict(data_dir=Path({str(records_dir)!r}), image_size="64x96", steps=3, eval_interval=3, strategy="mirrored",
              overrides={{"task": {{"model": yaml.safe_load({yaml.safe_dump(SMALL_MODEL)!r})}}}})
result = train(model_dir=Path({str(tmp_path / "model")!r}), **common, batch_size=4)
print("RESULT", result.steps, result.loss)
try:
    train(model_dir=Path({str(tmp_path / "odd")!r}), **common, batch_size=3)
except Exception as error:
    print("ERROR", error)
"""
    environment = os.environ | {"TF_USE_LEGACY_KERAS": "1"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    steps, loss = re.search(r"RESULT (\d+) (\S+)", done.stdout).groups()  # type: ignore[union-attr]
    assert steps == "3"
    assert 0 < float(loss) < 10
    assert "expected a multiple of 2" in done.stdout
