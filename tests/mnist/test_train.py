"""Training as users run it: real processes and the real digits, a part of them."""

import json
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from mlcore import cli
from mlcore.mnist.train import mnist_train
from mlcore.runtime.errors import DataError, UsageError

pytestmark = pytest.mark.slow

STEPS = 400
FLAGS = ["--batch-size=64", "--validation-size=500", "--hidden=64", "--hidden=32", "--dropout=0.1"]
SETTINGS = {"batch_size": 64, "validation_size": 500, "hidden": (64, 32), "dropout": 0.1}
KATIB = re.compile(r"([\w|-]+)\s*=\s*([+-]?\d*(\.\d+)?([Ee][+-]?\d+)?)")


def start(data, folder, steps=STEPS, *flags):
    command = [sys.executable, "-m", "mlcore", "mnist-train", f"--data-dir={data}", f"--model-dir={folder / 'model'}"]
    command += [f"--export-dir={folder / 'export'}", f"--steps={steps}", *FLAGS, *flags]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def card(folder, version=1):
    return json.loads((folder / "export" / str(version) / "assets.extra" / "model.json").read_text())


def weights_digest(folder, version=1):
    record = json.loads((folder / "export" / str(version) / "_SUCCESS.json").read_text())
    return record["results"]["weights_sha256"]


@pytest.fixture(scope="module")
def uninterrupted(small_mnist, tmp_path_factory):
    """A training in one go: its folder, and what it printed."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    process = start(small_mnist, folder, STEPS, f"--result-file=version={folder / 'out' / 'version'}")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return folder, out, err


def test_results_are_lines_that_katib_reads(uninterrupted):
    folder, out, _ = uninterrupted
    found = {}
    for line in out.splitlines():
        stamp, _, rest = line.partition(" ")
        if re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", stamp) and (match := KATIB.fullmatch(rest)):
            found.setdefault(match[1], []).append(float(match[2]))
    assert len(found["accuracy"]) >= 10 and len(found["loss"]) >= 10
    assert found["accuracy"][-1] > 0.85 and found["loss"][-1] < found["loss"][0]
    assert {"train_accuracy", "train_loss", "test_accuracy", "steps"} <= set(found)
    assert (folder / "out" / "version").read_text() == "1"


def test_event_files_have_the_tags_that_katib_looks_for(uninterrupted):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = uninterrupted[0]
    for part, tags in (("train", {"loss", "accuracy", "learning_rate"}), ("validation", {"loss", "accuracy"})):
        events = EventAccumulator(str(folder / "model" / part)).Reload()
        assert set(events.Tags()["tensors"]) == tags
        assert not any(one != other and one.startswith(other) for one in tags for other in tags)
        steps = [event.step for event in events.Tensors("accuracy")]
        assert steps == sorted(steps) and steps[-1] == STEPS and len(steps) >= 10


def test_model_directory_has_curves_confusion_and_report(uninterrupted):
    model = uninterrupted[0] / "model"
    names = {path.name for path in model.iterdir()}
    assert {"history.csv", "confusion.csv", "confusion.png", "report.html", "_SUCCESS.json", "run.json"} <= names
    rows = (model / "confusion.csv").read_text().splitlines()
    assert sum(int(value) for row in rows[1:] for value in row.split(",")[1:]) == 600
    assert "Confusion" in (model / "report.html").read_text()


def test_export_answers_any_batch_and_is_described(uninterrupted, mnist):
    from mlcore.mnist.tensorflow import tf

    folder = uninterrupted[0]
    predict = tf.saved_model.load(str(folder / "export" / "1")).signatures["serving_default"]
    for count in (0, 1, 7, 300):
        imgs = mnist.t10k.imgs[:count, ..., None].astype(np.float32) / 255
        outputs = {name: value.numpy() for name, value in predict(imgs=tf.constant(imgs)).items()}
        assert {name: (value.dtype.kind, value.shape) for name, value in outputs.items()} == {
            "probabilities": ("f", (count, 10)),
            "logits": ("f", (count, 10)),
            "class_ids": ("i", (count,)),
            "classes": ("O", (count,)),
        }
        assert outputs["class_ids"].dtype == np.int64
        np.testing.assert_allclose(outputs["probabilities"].sum(axis=1), 1, rtol=1e-5)
        assert [name.decode() for name in outputs["classes"]] == [str(number) for number in outputs["class_ids"]]
    assert (outputs["class_ids"] == mnist.t10k.labels[:300]).mean() > 0.8
    described = card(folder)
    assert described["signatures"]["serving_default"]["inputs"]["imgs"]["shape"] == [None, 28, 28, 1]
    assert described["classes"]["9"] == "9" and described["metrics"]["test_accuracy"] > 0.8


def test_same_seed_same_numbers_and_another_seed_others(small_mnist, tmp_path, uninterrupted):
    process = start(small_mnist, tmp_path / "again")
    assert process.communicate(timeout=120) and process.returncode == 0
    assert weights_digest(tmp_path / "again") == weights_digest(uninterrupted[0])
    history = [(folder / "model" / "history.csv").read_text() for folder in (tmp_path / "again", uninterrupted[0])]
    assert history[0] == history[1]
    process = start(small_mnist, tmp_path / "other", STEPS, "--seed=2")
    assert process.communicate(timeout=120) and process.returncode == 0
    assert weights_digest(tmp_path / "other") != weights_digest(uninterrupted[0])


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "terminated"])
def test_training_that_was_stopped_goes_on_to_the_same_numbers(small_mnist, tmp_path, uninterrupted, number):
    process = start(small_mnist, tmp_path, STEPS, "--checkpoint-interval-s=0")
    deadline = time.monotonic() + 100
    while not list((tmp_path / "model").glob("ckpt-*.index")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(number)
    stopped = time.monotonic()
    _, err = process.communicate(timeout=60)
    assert process.returncode == (143 if number == signal.SIGTERM else -9), err
    assert time.monotonic() - stopped < 10
    assert not (tmp_path / "export" / "1").exists()
    process = start(small_mnist, tmp_path)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0 and "going on from" in err, err
    assert weights_digest(tmp_path) == weights_digest(uninterrupted[0])
    history = [(folder / "model" / "history.csv").read_text() for folder in (tmp_path, uninterrupted[0])]
    assert history[0] == history[1]


def test_damaged_newest_checkpoint_falls_back_to_the_one_before(small_mnist, tmp_path, uninterrupted, caplog):
    settings = {"data_dir": small_mnist, "model_dir": tmp_path / "model", "export_dir": tmp_path / "export"}
    mnist_train(**settings, **SETTINGS, steps=STEPS, checkpoint_interval_s=0)
    newest = tmp_path / "model" / f"ckpt-{STEPS}.data-00000-of-00001"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 0xFF
    newest.write_bytes(content)
    (tmp_path / "model" / "_SUCCESS.json").unlink()
    with caplog.at_level("WARNING"):
        result = mnist_train(**settings, **SETTINGS, steps=STEPS)
    assert f"ckpt-{STEPS} cannot be read" in caplog.text
    assert result.version == 1, "the same weights are no new version"
    assert weights_digest(tmp_path) == weights_digest(uninterrupted[0])
    for path in (tmp_path / "model").glob("ckpt-*.data*"):
        path.write_bytes(b"")
    (tmp_path / "model" / "_SUCCESS.json").unlink()
    with pytest.raises(DataError, match="none of its checkpoints can be read"):
        mnist_train(**settings, **SETTINGS, steps=STEPS)


def test_again_more_steps_and_other_parameters(small_mnist, tmp_path):
    settings = {"data_dir": small_mnist, "model_dir": tmp_path / "model", "export_dir": tmp_path / "export", **SETTINGS}
    first = mnist_train(**settings, steps=20)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert mnist_train(**settings, steps=20) == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    more = mnist_train(**settings, steps=40)
    assert (more.version, more.steps) == (2, 40)
    with pytest.raises(DataError, match=r"--seed 1, now 7; name another --model-dir or pass --overwrite=true"):
        mnist_train(**settings, steps=40, seed=7)
    with pytest.raises(UsageError, match=r"--steps=30: .* has a checkpoint of step 40"):
        mnist_train(**settings, steps=30)
    anew = mnist_train(**settings, steps=20, seed=7, overwrite=True)
    assert (anew.version, anew.steps) == (3, 20)
    assert card(tmp_path, 3)["parameters"]["seed"] == 7


def test_loss_beyond_all_numbers_is_the_learning_rates_fault(small_mnist, tmp_path):
    settings = {"data_dir": small_mnist, "model_dir": tmp_path, **SETTINGS}
    with pytest.raises(UsageError, match=r"--learning-rate=1e\+30: the loss is (nan|inf) after step"):
        mnist_train(**settings, steps=50, learning_rate=1e30, optimizer="sgd")
    assert not list(tmp_path.glob("ckpt-*"))


def test_directories_come_from_the_tutorials_variables(small_mnist, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MNIST_DATA_DIR", str(small_mnist))
    monkeypatch.setenv("MNIST_MODELS_DIR", str(tmp_path / "models"))
    for name, value in {"STEPS": "40", "BATCH_SIZE": "64", "LEARNING_RATE": "0.01", "VALIDATION_SIZE": "500"}.items():
        monkeypatch.setenv(f"MLCORE_{name}", value)
    assert cli.main(["mnist-train"]) == 0
    assert (tmp_path / "models" / "1" / "saved_model.pb").is_file()
    assert (tmp_path / "models" / "training" / "report.html").is_file()
    capsys.readouterr()
    output = f"--output-dir={tmp_path / 'evaluation'}"
    assert cli.main(["mnist-evaluate", output]) == 0
    accuracy = float(re.search(r" accuracy=([\d.]+)", capsys.readouterr().out)[1])
    record = json.loads((tmp_path / "evaluation" / "metrics.json").read_text())
    described = json.loads((tmp_path / "models" / "1" / "assets.extra" / "model.json").read_text())
    assert accuracy == pytest.approx(record["accuracy"]) == pytest.approx(described["metrics"]["test_accuracy"])
    assert sum(entry["examples"] for entry in record["classes"]) == 600
    assert {"confusion.csv", "confusion.png", "report.html"} <= {p.name for p in (tmp_path / "evaluation").iterdir()}
    assert cli.main(["mnist-evaluate", output, "--acceptable-accuracy=0.999"]) == 65
    assert "expected at least --acceptable-accuracy=0.999" in capsys.readouterr().err
