"""`predict --server`: the same results as on disk, over every protocol."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import grpc
import numpy as np
import pytest
from PIL import Image

from mlcore.detection.predict import predict
from mlcore.runtime.errors import DataError, TransientError, UsageError
from mlcore.serving.grey import as_grey
from tests.serving.models import GREEN, RED, block_images, coloured
from tests.serving.peers import Http


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Five coloured pictures, one of them no picture, in formats that need turning and converting."""
    folder = tmp_path_factory.mktemp("pictures")
    for index in range(3):
        coloured(((10 + index, 5, 30, 25), RED), ((40, 20, 60, 44), GREEN)).save(folder / f"{index}.png")
    coloured(((8, 8, 30, 30), RED), size=(80, 60)).save(folder / "3.gif")
    (folder / "4.jpg").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Pictures of blocks as people have them: larger, dark on light, in colour, wide."""
    folder = tmp_path_factory.mktemp("digits")
    for label, img in zip((0, 3, 8), block_images(np.array([0, 3, 8])), strict=True):
        image = Image.fromarray(img)
        image.save(folder / f"{label}-small.png")
        image.resize((280, 280), Image.Resampling.NEAREST).convert("RGB").save(folder / f"{label}-large.png")
        Image.fromarray(255 - img).resize((84, 84), Image.Resampling.NEAREST).save(folder / f"{label}-paper.png")
        wide = Image.new("L", (56, 28), 30)
        wide.paste(image.resize((28, 28)), (14, 0))
    return folder


V1_DETECTOR = {
    "model_spec": {"version": "1"},
    "metadata": {"signature_def": {"signature_def": {"image_bytes": {
        "inputs": {"inputs": {"dtype": "DT_STRING", "tensor_shape": {"dim": [{"size": "-1"}]}}},
        "outputs": {name: {"dtype": "DT_FLOAT", "tensor_shape": {"unknown_rank": True}}
                    for name in ("detection_boxes", "detection_scores", "detection_classes", "num_detections")},
    }}}},
}  # fmt: skip


def run(server, source, output, *, name="colours", **options):
    result = predict(server=server, model_name=name, input=(str(source),), output_dir=output, **options)
    return result, json.loads((output / "predictions.json").read_text())


@pytest.mark.parametrize(
    ("name", "signature"),
    [("colours", None), ("colours", "serving_default"), ("pixels", None)],
    ids=["image_bytes", "pixels by choice", "pixels alone"],
)
def test_a_served_detector_gives_what_it_gives_on_disk(tf_serving, model_bases, pictures, tmp_path, name, signature):
    classes = model_bases["colours"] / "3" / "assets.extra" / "label_map.pbtxt"
    on_disk = predict(model=model_bases["colours"], input=(str(pictures),), output_dir=tmp_path / "disk")
    result, found = run(
        tf_serving.address, pictures, tmp_path / "out", name=name, signature=signature, label_map=classes, concurrency=3
    )
    assert (result.images, result.unreadable, result.detections) == (on_disk.images, 1, on_disk.detections)
    assert result.model is None and result.server == tf_serving.address
    assert 0 < result.p50_ms <= result.p95_ms <= result.p99_ms
    expected = json.loads((tmp_path / "disk" / "predictions.json").read_text())
    for key in ("images", "unreadable", "classes", "min_score"):
        assert found[key] == expected[key]
    assert found["model"]["name"] == name and found["model"]["version"] == (3 if name == "colours" else 1)
    assert found["model"]["signature"] == ("image_bytes" if (name, signature) == ("colours", None) else signature)
    assert found["latency"]["requests"] == 4 and found["latency"]["p50_ms"] == result.p50_ms
    for file in ("coco_results.json", "images/0.jpg", "images/3.jpg"):
        assert (tmp_path / "out" / file).read_bytes() == (tmp_path / "disk" / file).read_bytes()
    report = (tmp_path / "out" / "report.html").read_text()
    assert "Latency" in report and "p95" in report


def test_pictures_go_as_they_are_and_never_more_at_a_time_than_asked_for(tf_serving, pictures, tmp_path):
    before = len(tf_serving.requests)
    for concurrency in (1, 2):
        tf_serving.most, tf_serving.delay_s = 0, 0.1
        try:
            run(tf_serving.address, pictures, tmp_path / str(concurrency), concurrency=concurrency)
        finally:
            tf_serving.delay_s = 0
        assert tf_serving.most == concurrency
    sent = [request.inputs["inputs"].string_val[0] for request in tf_serving.requests[before:]]
    assert sent.count((pictures / "0.png").read_bytes()) == 2 and len(sent) == 8


def test_a_served_classifier_gives_class_and_probabilities(tf_serving, digits, tmp_path):
    result, found = run(tf_serving.address, digits, tmp_path / "out", name="blocks")
    assert (result.images, result.detections) == (9, None)
    assert found["model"]["version"] == 2 and "grey" in found["rule"]
    for entry in found["images"]:
        label = int(entry["file"][0])
        assert (entry["class_id"], entry["class"]) == (label, f"block {label}"), entry["file"]
        assert entry["inverted"] == entry["file"].endswith("paper.png")
        assert len(entry["probabilities"]) == 10 and sum(entry["probabilities"]) == pytest.approx(1, abs=1e-4)
        assert entry["probability"] == max(entry["probabilities"])
    assert "block 8" in (tmp_path / "out" / "report.html").read_text()
    (tmp_path / "names.txt").write_text("zero\none\ntwo\nthree\n")
    _, named = run(tf_serving.address, digits / "3-small.png", tmp_path / "named", name="blocks",
                   label_map=tmp_path / "names.txt")  # fmt: skip
    assert named["images"][0]["class"] == "three"


def test_a_picture_becomes_small_grey_and_light_on_dark_by_the_rule():
    small = block_images(np.array([7]))[0]
    rgb = np.repeat(small[..., None], 3, axis=2)
    assert np.array_equal(as_grey(rgb, 28, 28).pixels, small)
    paper = as_grey(255 - rgb, 28, 28)
    assert paper.inverted and np.array_equal(paper.pixels, small)
    large = np.repeat(np.repeat(rgb, 5, axis=0), 5, axis=1)
    assert np.array_equal(as_grey(large, 28, 28).pixels, small)  # the mean over areas
    tall = as_grey(np.full((56, 14, 3), 20, np.uint8), 28, 28)
    assert tall.pixels.shape == (28, 28) and set(tall.pixels.ravel()) == {20}  # padded with its border's grey
    assert as_grey(np.zeros((1, 1, 3), np.uint8), 28, 28).pixels.shape == (28, 28)


def test_boxes_in_pixels_are_understood(tmp_path):
    """Exports of official.vision give them unless they are told to normalise."""
    coloured(((10, 5, 30, 25), RED)).save(tmp_path / "a.png")
    row = {"detection_boxes": [[5, 10, 25, 30], [0, 0, 0, 0]], "detection_scores": [0.9, 0.0],
           "detection_classes": [1, 0], "num_detections": 1}  # fmt: skip
    peer = Http({
        "/v1/models/m/metadata": [(200, V1_DETECTOR)],
        "/v1/models/m:predict": [(200, {"predictions": [row]})],
    })  # fmt: skip
    try:
        _, found = run(peer.address, tmp_path / "a.png", tmp_path / "out", name="m", protocol="v1")
    finally:
        peer.stop()
    assert found["images"][0]["detections"] == [
        {"class_id": 1, "class": "class 1", "score": 0.9, "box": [10.0, 5.0, 30.0, 25.0]}
    ]


def test_again_is_free_and_another_version_is_another_result(tf_serving, pictures, tmp_path):
    first, _ = run(tf_serving.address, pictures, tmp_path / "out", signature="serving_default")
    before = len(tf_serving.requests)
    again, _ = run(tf_serving.address, pictures, tmp_path / "out", signature="serving_default")
    assert again == first and len(tf_serving.requests) == before
    with pytest.raises(DataError, match="another input model"):
        run(tf_serving.address, pictures, tmp_path / "out", name="pixels", signature="serving_default")


def test_a_server_that_tells_no_version_is_asked_again(tmp_path):
    coloured(((10, 5, 30, 25), RED)).save(tmp_path / "a.png")
    answers = [
        (200, {"predictions": [{"detection_boxes": [[0, 0, 1, 1]], "detection_scores": [score],
                                "detection_classes": [1], "num_detections": 1}]})
        for score in (0.75, 0.5)
    ]  # fmt: skip
    metadata = {"metadata": V1_DETECTOR["metadata"]}
    peer = Http({"/v1/models/m/metadata": [(200, metadata)], "/v1/models/m:predict": answers,
                 "/v1/models/m": [(200, {"name": "m", "ready": "True"})]})  # fmt: skip
    try:
        for score in (0.75, 0.5):
            _, found = run(peer.address, tmp_path / "a.png", tmp_path / "out", name="m", protocol="v1")
            assert found["images"][0]["detections"][0]["score"] == score
    finally:
        peer.stop()


def test_a_server_that_is_away_for_a_moment_does_not_matter(tf_serving, pictures, tmp_path):
    tf_serving.busy, tf_serving.busy_with = 5, grpc.StatusCode.UNAVAILABLE
    result, _ = run(tf_serving.address, pictures, tmp_path / "out")
    assert result.images == 4


def test_a_server_that_goes_away_ends_the_step_and_leaves_nothing(tf_serving, pictures, tmp_path):
    tf_serving.busy, tf_serving.busy_with = 10**6, grpc.StatusCode.UNAVAILABLE
    try:
        with pytest.raises(TransientError, match=r"colours at .*: no answer within 0.5 s"):
            run(tf_serving.address, pictures, tmp_path / "out", deadline_s=0.5)
    finally:
        tf_serving.busy = 0
    assert list(tmp_path.iterdir()) == []


def test_pictures_that_the_server_refuses_are_listed(tf_serving, pictures, tmp_path):
    tf_serving.busy, tf_serving.busy_with = 1, grpc.StatusCode.INVALID_ARGUMENT
    result, found = run(tf_serving.address, pictures, tmp_path / "out", concurrency=1)
    assert (result.images, result.unreadable) == (3, 2)
    assert "INVALID_ARGUMENT: try again" in found["unreadable"][1]["reason"]
    tf_serving.busy = 100
    try:
        with pytest.raises(DataError, match="5 of 5 pictures cannot be read"):
            run(tf_serving.address, pictures, tmp_path / "other")
    finally:
        tf_serving.busy = 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "echo"}, r"echo at .* has the inputs bool: bool .*expected one, of pictures"),
        ({"name": "nothing"}, "NOT_FOUND: Servable not found"),
        ({"signature": "other"}, r"--signature=other: colours at .* has image_bytes, serving_default"),
        ({"model": "x"}, "one of --model"),
        ({"name": None}, "--model-name"),
        ({"label_map": Path("nowhere.txt")}, "--label-map=nowhere.txt"),
    ],
    ids=["not of pictures", "no such model", "no such signature", "both", "no name", "label map"],
)
def test_a_mistake_names_what_was_expected(tf_serving, pictures, tmp_path, options, words):
    with pytest.raises((UsageError, DataError), match=words):
        run(tf_serving.address, pictures, tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == []


def test_neither_model_nor_server_is_wrong_use(tmp_path):
    with pytest.raises(UsageError, match=r"one of --model .* and --server"):
        predict(input=("x",), output_dir=tmp_path / "out")
    with pytest.raises(UsageError, match="--signature=x is given without --server"):
        predict(model=tmp_path, input=("x",), output_dir=tmp_path / "out", signature="x")


def test_predict_from_a_server_needs_no_tensorflow_and_a_directory_names_the_extra(
    tf_serving, model_bases, pictures, tmp_path
):
    """As in the image predict-client: a finder that knows no TensorFlow stands in for its absence."""
    script = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("tensorflow", "cv2", "matplotlib", "kserve"):
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
from mlcore.cli import main
source = "--input={pictures}"
code = main(["predict", "--server={tf_serving.address}", "--model-name=colours", source, "--output-dir=out"])
code2 = main(["predict", "--model={model_bases["colours"]}", source, "--output-dir=other"])
sys.exit(10 * code + code2)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2, done.stderr
    assert "tensorflow is not installed: pip install 'mlcore[tf]'" in done.stderr
    assert "p95_ms=" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    shutil.rmtree(tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize(("step", "protocol"), [("predict", "v1"), ("predict", "tfs-grpc"), ("verify", "tfs-grpc")])
def test_sigterm_ends_it_while_a_server_does_not_answer(tf_serving, block_data, pictures, tmp_path, step, protocol):
    """A server that is known to be there and then is silent: requests hang, the step must not."""
    arguments = [f"--protocol={protocol}", "--deadline-s=60", "--output-dir=out"]
    silent = None
    if protocol == "v1":
        silent = Http({"/v1/models/m/metadata": [(200, V1_DETECTOR)], "/v1/models/m": [(404, {})]}, silent="predict")
        arguments += [f"--server={silent.address}", "--model-name=m"]
    else:
        arguments += [f"--server={tf_serving.address}", "--model-name=blocks"]
        tf_serving.delay_s = 8
    arguments += [f"--input={pictures}"] if step == "predict" else [f"--data-dir={block_data}"]
    seen = tf_serving.requests if silent is None else silent.requests
    before = len(seen)
    process = subprocess.Popen([sys.executable, "-m", "mlcore", step, *arguments], cwd=tmp_path, stderr=subprocess.PIPE,
                               text=True, env=os.environ | {"PYTHONPATH": str(Path.cwd())})  # fmt: skip
    try:
        while not any("predict" in str(request) or "imgs" in str(request)[:200] for request in seen[before:]):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.05)
        started = time.monotonic()
        process.terminate()
        _, err = process.communicate(timeout=20)
        assert process.returncode == 143 and time.monotonic() - started < 4, err
    finally:
        tf_serving.delay_s = 0
        process.kill()
        if silent is not None:
            silent.stop()
    assert err.splitlines()[-1] == f"mlcore {step}: error: stopped by SIGTERM"
    assert list(tmp_path.iterdir()) == []
