"""What a step says before it loads TensorFlow."""

import shutil
import subprocess
import sys
import time

import pytest

from mlcore import cli
from mlcore.mnist.train import mnist_train
from mlcore.runtime.errors import UsageError


@pytest.mark.parametrize("step", ["mnist-download", "mnist-train", "mnist-evaluate"])
def test_help_never_loads_tensorflow(step):
    script = (
        f"import sys\nfrom mlcore import cli\ncli.main(['{step}', '--help'])\nassert 'tensorflow' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "MNIST_DATA_DIR" in done.stdout


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"hidden": (256, 0)}, r"--hidden=256,0: expected at least one layer of at least 1 unit"),
        ({"hidden": ()}, r"--hidden=: expected at least one layer"),
        ({"validation_size": 3100}, r"--validation-size=3100: expected less than the 3100 training examples"),
        ({"learning_rate": 0}, r"learning_rate"),
        ({"model_dir": None}, r"--model-dir or --export-dir must be given"),
    ],
    ids=["empty layer", "no layer", "no training examples", "rate", "no directory"],
)
def test_wrong_parameter_is_named_at_once(small_mnist, tmp_path, parameters, message):
    started = time.monotonic()
    with pytest.raises(UsageError, match=message):
        mnist_train(**{"data_dir": small_mnist, "model_dir": tmp_path / "m", **parameters})
    assert time.monotonic() - started < 2


def test_model_directory_of_something_else_is_left_alone(small_mnist, tmp_path, capsys):
    (tmp_path / "ckpt-1.index").write_bytes(b"of another program")
    arguments = [f"--data-dir={small_mnist}", f"--model-dir={tmp_path}", "--validation-size=100"]
    assert cli.main(["mnist-train", *arguments]) == 65
    assert "holds ckpt-1.index, but no run.json" in capsys.readouterr().err
    assert cli.main(["mnist-train", *arguments, "--overwrite=true"]) == 65
    assert (tmp_path / "ckpt-1.index").read_bytes() == b"of another program"


def test_data_is_not_trained_in(small_mnist, tmp_path, capsys):
    data = tmp_path / "data"
    shutil.copytree(small_mnist, data)
    (data / "_SUCCESS.json").write_text('{"step": "mnist-download"}')
    before = sorted(path.name for path in data.rglob("*"))
    arguments = [f"--data-dir={data}", f"--model-dir={data}", "--validation-size=100", "--overwrite"]
    assert cli.main(["mnist-train", *arguments]) == 2
    assert "holds the result of the step mnist-download" in capsys.readouterr().err
    assert sorted(path.name for path in data.rglob("*")) == before


@pytest.mark.slow
@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_damaged_record_is_overwritten_on_demand(small_mnist, tmp_path, capsys, text):
    (tmp_path / "run.json").write_text(text)
    arguments = [f"--data-dir={small_mnist}", f"--model-dir={tmp_path}", "--validation-size=100", "--steps=1"]
    assert cli.main(["mnist-train", *arguments]) == 65
    assert "run.json: cannot be read as JSON" in capsys.readouterr().err
    assert cli.main(["mnist-train", *arguments, "--overwrite=true"]) == 0


@pytest.mark.slow
def test_a_start_that_failed_does_not_bind_the_next(small_mnist, tmp_path):
    arguments = [f"--data-dir={small_mnist}", f"--model-dir={tmp_path}", "--validation-size=100", "--steps=3"]
    assert cli.main(["mnist-train", *arguments, "--learning-rate=1e30", "--optimizer=sgd"]) == 2
    assert cli.main(["mnist-train", *arguments]) == 0


def test_evaluate_names_a_missing_model(small_mnist, tmp_path, capsys):
    assert cli.main(["mnist-evaluate", f"--model={tmp_path}", f"--data-dir={small_mnist}"]) == 2
    assert "holds no SavedModel" in capsys.readouterr().err
