"""Exports of untrained models whose weights are drawn so that they find something."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlcore.data.label_map import read_label_map
from mlcore.data.records import RecordSet
from mlcore.data.tfrecord import read_records
from mlcore.detection.evaluate import Checkpoint, evaluate
from mlcore.detection.export import export
from mlcore.detection.truth import read_truth
from mlcore.detection.verification import Selection, compare
from mlcore.runtime.errors import DataError, UsageError
from mlcore.serving.version_directory import list_versions, read_card
from tests.waiting import wait_until

pytestmark = pytest.mark.slow

STEP = 7
SIGNATURES = {"serving_default", "image_bytes", "tf_example"}
TINY_MASK_RCNN = {
    "task": {
        "model": {
            "min_level": 3,
            "max_level": 5,
            "backbone": {"type": "mobilenet", "mobilenet": {"model_id": "MobileNetV2", "filter_size_scale": 0.35}},
            "decoder": {"type": "fpn", "fpn": {"num_filters": 16}},
            "rpn_head": {"num_filters": 16},
            "roi_generator": {"test_num_proposals": 20, "test_pre_nms_top_k": 50},
            "detection_head": {"num_convs": 1, "num_filters": 16, "fc_dims": 32},
            "mask_head": {"num_convs": 1, "num_filters": 16},
        }
    }
}


def make_model_dir(path: Path, records_dir: Path, **flags: Any) -> Path:
    """A model directory as training leaves it, without the training."""
    from mlcore.detection import experiment
    from mlcore.detection.settings import Settings, configure, describe
    from mlcore.detection.tensorflow import import_tensorflow

    tf = import_tensorflow()
    records = RecordSet.open(records_dir)
    settings = Settings(image_size="64x96", **flags)
    config = configure(settings, records)
    model = experiment.build_model(experiment.build_task(config))
    draw_weights(model, config.task, pictures(records_dir, "train"))
    path.mkdir(parents=True)
    experiment.write_experiment(path, describe(settings, config, records, seed=0))
    step = tf.Variable(STEP, dtype=tf.int64)
    tf.train.Checkpoint(model=model, global_step=step).write(str(path / f"ckpt-{STEP}"))
    return path


def draw_weights(model: Any, task_config: Any, images: list[bytes]) -> None:
    """Weights with which what is found, and how surely, depends on the picture, as it does after a training."""
    from mlcore.detection.signatures import serving_functions
    from mlcore.detection.tensorflow import import_tensorflow

    tf = import_tensorflow()
    generator = np.random.default_rng(3)
    for variable in model.trainable_variables:
        kind, shape = variable.name.rpartition("/")[2], variable.shape
        if "kernel" in kind:
            inputs = np.prod(shape[:2] if "depthwise" in kind else shape[:-1])
            size = 0.2 if "/boxes" in variable.name else 1.0  # boxes not far from their anchors
            variable.assign(generator.normal(0, size * (2 / inputs) ** 0.5, shape))
        elif "/scores" in variable.name:
            variable.assign(np.full(shape, -1.5))
    pixels = tf.stack([tf.io.decode_jpeg(image) for image in images])
    prepared, _ = serving_functions(model, task_config).prepare(pixels)
    normalisations = [layer for layer in model.submodules if hasattr(layer, "momentum") and hasattr(layer, "axis")]
    for layer in normalisations:
        layer.momentum = 0.0  # take the mean and the variance of this one batch
    features = model.decoder(model.backbone(prepared, training=True), training=True)
    (model.head if hasattr(model, "head") else model.rpn_head)(features, training=True)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory, records_dir: Path) -> Path:
    return make_model_dir(tmp_path_factory.mktemp("retinanet") / "model", records_dir)


@pytest.fixture(scope="module")
def exported(model_dir: Path) -> Path:
    """A RetinaNet, with everything that an export can have."""
    evaluate(data_dir=_records_of(model_dir), model_dir=model_dir, split="val")
    result = export(model_dir=model_dir, output_dir=model_dir.parent / "models", frozen_graph=True, tflite=True)
    assert (result.version, result.step) == (1, STEP)
    assert result.detections > 20
    return result.path


@pytest.fixture(scope="module")
def exported_masks(tmp_path_factory: pytest.TempPathFactory, records_dir: Path) -> Path:
    root = tmp_path_factory.mktemp("maskrcnn")
    make_model_dir(root / "model", records_dir, experiment="maskrcnn_resnetfpn_coco", overrides=TINY_MASK_RCNN)
    return export(model_dir=root / "model", output_dir=root / "models").path


def _records_of(model_dir: Path) -> Path:
    from mlcore.detection.experiment import describe_experiment

    return Path(describe_experiment(model_dir)["data"]["path"])


def pictures(records_dir: Path, split: str = "test") -> list[bytes]:
    shards = RecordSet.open(records_dir).shards(split)
    return [read_truth(record)[1] for shard in shards for record in read_records(shard)]


def in_fresh_process(program: str, *arguments: Path | str) -> str:
    """What a program without our packages prints: TensorFlow is all that it may import."""
    isolated = (
        "import sys\n"
        "for name in ('mlcore', 'official', 'tf_keras', 'keras'): sys.modules[name] = None\n"
        "import numpy as np, tensorflow as tf\n"
    )
    command = [sys.executable, "-c", isolated + program, *map(str, arguments)]
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_model_works_with_tensorflow_alone_at_any_size_and_batch(exported: Path) -> None:
    program = """
import json
model = tf.saved_model.load(sys.argv[1])
call = model.signatures['serving_default']
shapes = {}
for batch, height, width in ((1, 64, 96), (3, 50, 200), (2, 333, 7), (1, 1, 1), (0, 64, 96)):
    outputs = call(inputs=tf.zeros([batch, height, width, 3], tf.uint8))
    shapes[f'{batch}x{height}x{width}'] = {name: [value.dtype.name, *value.shape] for name, value in outputs.items()}
gif = tf.constant(open(sys.argv[2], 'rb').read())
png = tf.io.encode_png(tf.zeros([20, 30, 1], tf.uint8))
shapes['bytes'] = {name: [value.dtype.name, *value.shape] for name, value in
                   model.signatures['image_bytes'](inputs=tf.stack([gif, png])).items()}
shapes['none'] = model.signatures['image_bytes'](inputs=tf.zeros([0], tf.string))['detection_boxes'].shape.as_list()
shapes['signatures'] = sorted(model.signatures)
print(json.dumps(shapes))
"""
    from PIL import Image

    gif = exported.parent.parent / "picture.gif"
    Image.new("RGB", (31, 21), "red").save(gif)
    shapes = json.loads(in_fresh_process(program, exported, gif))
    assert set(shapes.pop("signatures")) == SIGNATURES
    assert shapes.pop("none") == [0, 100, 4]
    for name, outputs in shapes.items():
        batch = 2 if name == "bytes" else int(name.partition("x")[0])
        assert outputs == {
            "detection_boxes": ["float32", batch, 100, 4],
            "detection_scores": ["float32", batch, 100],
            "detection_classes": ["float32", batch, 100],
            "num_detections": ["float32", batch],
        }


def test_all_ways_in_give_the_same_detections(exported: Path, records_dir: Path) -> None:
    from mlcore.detection.verification import FreshProcess

    images = pictures(records_dir)
    with FreshProcess() as fresh:
        answers = fresh.run(exported, images, exported.parent.parent / "scratch")
    assert set(answers) == {*SIGNATURES, "frozen_inference_graph.pb"}
    for other in answers.values():
        assert compare(answers["serving_default"], other).share >= 0.99
    for found in answers["serving_default"]:
        assert ((found.boxes_yxyx >= 0) & (found.boxes_yxyx <= 1)).all()
        assert (np.diff(found.scores) <= 0).all()
        assert set(found.classes) <= {1, 2}


def test_the_detections_are_those_of_official_vision(model_dir: Path, records_dir: Path) -> None:
    """Against its own preparation of a picture and its own suppression, in another order of operations."""
    from mlcore.detection.tensorflow import import_tensorflow

    tf = import_tensorflow()
    from official.vision.ops import preprocess_ops

    from mlcore.detection.detectors import detections_of

    detector, model, config = Checkpoint.find(model_dir, "best").load_model()
    size, level = config.task.model.input_size[:2], config.task.model.max_level
    images = pictures(records_dir, "train")[:6]
    expected = []
    for image in images:
        pixels = tf.io.decode_jpeg(image)[5:, 10:]  # not of the shape of the model's input
        normalised = preprocess_ops.normalize_image(pixels)
        padded = preprocess_ops.compute_padded_size(size, 2**level)
        prepared, info = preprocess_ops.resize_and_crop_image(normalised, size, padded_size=padded)
        content = info[0] * info[2]
        outputs = dict(model(prepared[tf.newaxis], image_shape=content[tf.newaxis], training=False))
        outputs["detection_boxes"] = outputs["detection_boxes"] / tf.tile(content, [2])
        expected.append(detections_of({name: np.asarray(value) for name, value in outputs.items() if "det" in name}, 0))
    encoded = [tf.io.encode_png(tf.io.decode_jpeg(image)[5:, 10:]).numpy() for image in images]
    selection = Selection.of(config.task)
    agreement = compare(expected, detector.detect(encoded), selection)
    assert agreement.detections > 50
    assert agreement.share >= 0.98
    assert agreement.ties <= 0.05 * agreement.detections
    assert agreement.box_difference < 1e-3
    assert agreement.score_difference < 5e-3
    swapped = [tf.io.encode_png(tf.io.decode_jpeg(image)[5:, 10:, ::-1]).numpy() for image in images]
    for faulty in (swapped, encoded[1:] + encoded[:1]):
        assert compare(expected, detector.detect(faulty), selection).share < 0.9


def test_checkpoint_and_export_have_the_same_metrics(model_dir: Path, exported: Path, records_dir: Path) -> None:
    ours = evaluate(data_dir=records_dir, split="train", model_dir=model_dir, batch_size=5)
    theirs = evaluate(data_dir=records_dir, split="train", model=exported.parent, output_dir=model_dir.parent / "ev")
    assert ours.images == theirs.images == RecordSet.open(records_dir).count("train")
    assert ours.objects == theirs.objects > 0
    for name in ("coco_ap", "ap50", "ar_100_detections"):
        assert getattr(ours, name) == pytest.approx(getattr(theirs, name), abs=1e-4)
    assert theirs.ar_100_detections is not None and theirs.ar_100_detections > 0
    assert ours.output_dir == model_dir / "evaluation" / f"train-{STEP}"
    again = evaluate(data_dir=records_dir, split="train", model_dir=model_dir, batch_size=2)
    assert again == ours


def test_an_evaluation_leaves_metrics_and_scalars_under_the_same_names(exported: Path, model_dir: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = model_dir / "evaluation" / f"val-{STEP}"
    record = json.loads((folder / "metrics.json").read_text())
    assert (record["step"], record["split"]) == (STEP, "val")
    assert set(record["per_class"]) == {"circle", "square"}
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    events.Reload()
    tags = events.Tags()["tensors"]
    measured = {name for name, value in record["metrics"].items() if value is not None}
    assert measured <= set(tags)
    assert {tag.split("/")[0] for tag in tags if "/" in tag} == {"per_class"}
    assert [event.step for event in events.Tensors("coco_ap")] == [STEP]
    assert not [(one, two) for one in tags for two in tags if one != two and two.startswith(one)]


def test_the_extras_say_what_the_model_is(exported: Path, records_dir: Path) -> None:
    card = read_card(exported)
    assert read_label_map(exported / "assets.extra" / "label_map.pbtxt") == {1: "circle", 2: "square"}
    assert card["classes"] == {"1": "circle", "2": "square"}
    assert card["checkpoint"]["step"] == STEP
    assert card["training_data"]["digest"] == RecordSet.open(records_dir).digest
    assert set(card["signatures"]) == SIGNATURES
    assert card["signatures"]["serving_default"]["inputs"] == {
        "inputs": {"dtype": "uint8", "shape": [None, None, None, 3]}
    }
    assert card["signatures"]["image_bytes"]["outputs"]["detection_boxes"] == {
        "dtype": "float32",
        "shape": [None, 100, 4],
    }
    assert card["metrics"]["val"]["images"] == RecordSet.open(records_dir).count("val")
    assert {"tensorflow", "tf-models-official", "mlcore"} <= set(card["versions"])
    assert card["verification"]["share"] >= 0.98
    assert card["parameters"]["task"]["model"]["num_classes"] == 3


def test_the_frozen_graph_keeps_the_names_of_the_object_detection_api(exported: Path) -> None:
    program = """
graph = tf.compat.v1.GraphDef.FromString(open(sys.argv[1], 'rb').read())
with tf.Graph().as_default(), tf.compat.v1.Session() as session:
    tf.import_graph_def(graph, name='')
    names = ['detection_boxes:0', 'detection_scores:0', 'detection_classes:0', 'num_detections:0']
    outputs = session.run(names, {'image_tensor:0': np.zeros([2, 40, 60, 3], np.uint8)})
print([list(output.shape) for output in outputs])
"""
    shapes = in_fresh_process(program, exported / "assets.extra" / "frozen_inference_graph.pb")
    assert json.loads(shapes) == [[2, 100, 4], [2, 100], [2, 100], [2]]


def test_the_tflite_model_runs_on_built_in_operations(exported: Path) -> None:
    program = """
interpreter = tf.lite.Interpreter(sys.argv[1], experimental_op_resolver_type=
                                  tf.lite.experimental.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES)
outputs = interpreter.get_signature_runner()(images=np.zeros([1, 64, 96, 3], np.uint8))
print(sorted((name, str(value.dtype)) for name, value in outputs.items()))
"""
    assert "('detection_boxes', 'float32')" in in_fresh_process(program, exported / "assets.extra" / "model.tflite")


def test_the_same_export_again_is_up_to_date(exported: Path, model_dir: Path) -> None:
    written = (exported / "saved_model.pb").stat().st_mtime_ns
    again = export(model_dir=model_dir, output_dir=exported.parent, frozen_graph=True, tflite=True)
    assert (again.version, again.path) == (1, exported)
    assert (exported / "saved_model.pb").stat().st_mtime_ns == written
    with pytest.raises(DataError, match=r"--version=1: .* is there with another content"):
        export(model_dir=model_dir, output_dir=exported.parent, version=1)
    assert list(list_versions(exported.parent)) == [1]


def test_a_model_with_masks_gives_them(exported_masks: Path, records_dir: Path) -> None:
    program = """
model = tf.saved_model.load(sys.argv[1])
for batch in (1, 2):
    outputs = model.signatures['serving_default'](inputs=tf.zeros([batch, 40, 60, 3], tf.uint8))
    assert outputs['detection_masks'].shape[:2] == [batch, 100] and outputs['detection_masks'].dtype == tf.float32
"""
    in_fresh_process(program, exported_masks)
    root = exported_masks.parent.parent
    result = evaluate(data_dir=records_dir, split="test", model_dir=root / "model")
    export_result = evaluate(data_dir=records_dir, split="test", model=exported_masks)
    assert result.images == export_result.images == 4
    assert result.mask_coco_ap is not None
    assert result.mask_coco_ap == pytest.approx(export_result.mask_coco_ap, abs=1e-4)
    with pytest.raises(UsageError, match="maskrcnn_resnetfpn_coco cannot be converted to TFLite, RetinaNet alone can"):
        export(model_dir=root / "model", output_dir=root / "other", tflite=True)


def test_a_killed_export_leaves_nothing_that_a_server_could_load(model_dir: Path, tmp_path: Path) -> None:
    base = tmp_path / "models"
    process = start_export(model_dir, base)
    wait_until(lambda: any(base.glob(".*/saved_model.pb")) or process.poll() is not None, timeout_s=120)
    assert process.poll() is None
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert list_versions(base) == {}
    assert all(entry.name.startswith(".") for entry in base.iterdir())


def test_a_terminated_export_ends_at_once_and_cleans_up(model_dir: Path, tmp_path: Path) -> None:
    base = tmp_path / "models"
    process = start_export(model_dir, base)
    wait_until(lambda: (base.is_dir() and any(base.iterdir())) or process.poll() is not None, timeout_s=120)
    os.kill(process.pid, signal.SIGTERM)
    process.communicate(timeout=15)
    assert process.returncode == 143
    assert list(base.iterdir()) == []


def test_concurrent_exports_get_different_versions(model_dir: Path, tmp_path: Path) -> None:
    processes = [start_export(model_dir, tmp_path), start_export(model_dir, tmp_path)]
    assert [process.communicate() and process.returncode for process in processes] == [0, 0]
    assert list(list_versions(tmp_path)) == [1, 2]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["1", "2"]


def test_an_export_that_finds_something_else_is_not_published(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault of saving, here other weights, is found by running what was saved."""
    import mlcore.detection.export as module

    save = module.save

    def save_other_weights(functions: Any, model: Any, directory: Path) -> None:
        before = [variable.numpy() for variable in model.variables]
        for variable in model.variables:
            if "/boxes" in variable.name:
                variable.assign(variable * -1.0 + 0.3)
        save(functions, model, directory)
        for variable, value in zip(model.variables, before, strict=True):
            variable.assign(value)

    monkeypatch.setattr(module, "save", save_other_weights)
    with pytest.raises(DataError, match=r"agrees with the checkpoint on .* nothing was published"):
        export(model_dir=model_dir, output_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_model_trained_in_mixed_precision_is_run_in_float32(tmp_path: Path, records_dir: Path) -> None:
    from mlcore.detection import experiment
    from mlcore.detection.detectors import ModelDetector

    folder = make_model_dir(tmp_path / "model", records_dir, mixed_precision="bfloat16")
    detector, model, config = Checkpoint.find(folder, "latest").load_model()
    assert model.compute_dtype == "float32"
    experiment.set_precision(config, training=True)
    try:
        mixed = experiment.build_model(experiment.build_task(config))
    finally:
        experiment.set_precision(config)
    assert mixed.compute_dtype == "bfloat16"
    mixed.set_weights(model.get_weights())
    images = pictures(records_dir)[:2]
    exact, rough = detector.detect(images), ModelDetector(mixed, config.task).detect(images)
    for one, other in zip(exact, rough, strict=True):
        assert len(one.scores) and len(other.scores)
        assert other.scores[0] == pytest.approx(one.scores[0], abs=0.05)


def start_export(model_dir: Path, base: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "mlcore", "export", f"--model-dir={model_dir}", f"--output-dir={base}"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_the_package_versions_are_part_of_what_an_export_is_made_from(exported: Path) -> None:
    record: Mapping[str, Any] = json.loads((exported / "_SUCCESS.json").read_text())
    assert "tensorflow" in record["inputs"]["versions"]


def test_the_tflite_model_finds_the_same_in_a_picture_of_other_proportions(exported: Path, records_dir: Path) -> None:
    program = """
from pathlib import Path
version, picture = Path(sys.argv[1]), sys.argv[2]
runner = tf.lite.Interpreter(str(version / 'assets.extra' / 'model.tflite')).get_signature_runner()
height, width = runner.get_input_details()['images']['shape'][1:3]
pixels = tf.io.decode_image(Path(picture).read_bytes(), channels=3)[:height, :width // 2]
assert pixels.shape[:2] == [height, width // 2]  # so that nothing is rounded after a change of the size
found = tf.saved_model.load(str(version)).signatures['serving_default'](inputs=pixels[tf.newaxis])
framed = np.empty([1, height, width, 3], np.uint8)
framed[:] = 124, 116, 104
framed[0, :, :width // 2] = pixels
lite = runner(images=framed)
print(np.abs(found['detection_scores'][0, :20] - lite['detection_scores'][0, :20]).max())
"""
    picture = exported.parent / "picture.jpg"
    picture.write_bytes(pictures(records_dir)[0])
    assert float(in_fresh_process(program, exported, picture).splitlines()[-1]) < 0.03
