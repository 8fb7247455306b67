"""examples/mnist.ipynb: its cells run from top to bottom on real MNIST, and what Katib would make of the training."""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.manifests.conftest import EVENTS, PRINTED

pytestmark = pytest.mark.slow

# Of Katib's StdOut collector, as its documentation gives it.
KATIB = re.compile(r"([\w|-]+)\s*=\s*([+-]?\d*(\.\d+)?([Ee][+-]?\d+)?)")


@dataclass(frozen=True)
class Run:
    """A notebook that was run."""

    folder: Path
    stdout: str


def cells(path: Path, kind: str) -> list[str]:
    return ["".join(cell["source"]) for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == kind]


@pytest.fixture(scope="module")
def notebook(project: Path) -> Path:
    return project / "examples" / "mnist.ipynb"


@pytest.fixture(scope="module")
def ran(notebook: Path, project: Path, shared_data: Path, tmp_path_factory) -> Run:
    """The code cells, run one after the other in one process."""
    folder = tmp_path_factory.mktemp("notebook")
    environment = {**os.environ, "MLCORE_MIRROR": (shared_data / "mnist").as_uri(), "PYTHONPATH": str(project)}
    done = subprocess.run([sys.executable, "-c", "\n".join(cells(notebook, "code"))], cwd=folder, env=environment,
                          capture_output=True, text=True, timeout=300)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return Run(folder, done.stdout)


def test_the_cells_make_a_version_and_its_evaluation(ran):
    assert (ran.folder / "mnist" / "exported" / "1" / "saved_model.pb").is_file()
    metrics = json.loads((ran.folder / "mnist" / "evaluation" / "metrics.json").read_text())
    assert metrics["accuracy"] > 0.96
    assert f"accuracy {metrics['accuracy']:.4f}" in ran.stdout
    answers, labels = (
        re.search(rf"^{name}: (.*)$", ran.stdout, re.MULTILINE)[1].split() for name in ("model", "labels")
    )
    assert labels == ["7", "2", "1", "0", "4", "1", "4", "9"]
    assert sum(answer == label for answer, label in zip(answers, labels, strict=True)) >= 7


def test_nothing_that_a_run_leaves_is_in_the_notebook(notebook):
    content = json.loads(notebook.read_text())
    assert content["nbformat"] == 4
    for cell in content["cells"]:
        assert cell["cell_type"] != "code" or (cell["outputs"], cell["execution_count"]) == ([], None)


def test_training_prints_the_metrics_that_the_experiments_name(ran):
    found = {match[1]: match[2] for match in KATIB.finditer(ran.stdout) if match[2]}
    assert {"accuracy", "loss", "train_accuracy", "train_loss"} <= set(found)
    assert set(found) <= PRINTED["mnist-train"]
    assert 0.9 < float(found["accuracy"]) <= 1


def test_training_writes_the_event_files_that_the_experiments_name(ran):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    written = set()
    for folder in ("train", "validation"):
        accumulator = EventAccumulator(str(ran.folder / "mnist" / "model" / folder)).Reload()
        tags = [*accumulator.Tags()["scalars"], *accumulator.Tags()["tensors"]]
        written |= {f"{folder}/{tag}" for tag in tags}
    assert written == EVENTS["mnist-train"]


def test_a_detector_prints_and_writes_the_metrics_that_the_experiments_name():
    from mlcore.detection.metrics import SUMMARY
    from mlcore.detection.summaries import VALIDATION
    from mlcore.detection.validation import _PRINTED

    assert PRINTED["train"] == {*_PRINTED, "loss"}
    assert EVENTS["train"] <= {f"{VALIDATION}/{name}" for name in SUMMARY}
