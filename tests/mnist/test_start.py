"""What a step says before it loads TensorFlow."""

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
    assert (tmp_path / "ckpt-1.index").read_bytes() == b"of another program"


def test_evaluate_names_a_missing_model(small_mnist, tmp_path, capsys):
    assert cli.main(["mnist-evaluate", f"--model={tmp_path}", f"--data-dir={small_mnist}"]) == 2
    assert "holds no SavedModel" in capsys.readouterr().err
