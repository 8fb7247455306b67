"""The MNIST pipeline, run by Pipelines' own local runner with the images, on real data from a server on the loopback.

What is asserted is what lies on the volume and among the artifacts: the runner's verdict can be wrong.
"""

import functools
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.images.conftest import TAG

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

EPOCHS = 3


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def mirror(shared_data: Path) -> Iterator[str]:
    """Address of a server of MNIST's files."""
    handler = functools.partial(_Quiet, directory=str(shared_data / "mnist"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture
def run(images, project: Path, tmp_path: Path, volume: str, mirror: str):
    """Runs the MNIST pipeline on the volume; the process, and the folder of artifacts."""

    def pipeline(**parameters: Any) -> tuple["subprocess.CompletedProcess[str]", Path]:
        given = {
            "epochs": EPOCHS,
            "mirror": [mirror],
            "hidden": [64],
            "serve": False,
            "acceptable_accuracy": 0.9,
            **parameters,
        }
        done = subprocess.run(
            [sys.executable, "-m", "manifests.pipelines.local", "mnist", f"--volume={volume}", f"--root={tmp_path}",
             "--network=host", *(f"{name}={json.dumps(value)}" for name, value in given.items())],
            cwd=project, env={**os.environ, "TAG": TAG, "REGISTRY": "mlcore"},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600,
        )  # fmt: skip
        return done, tmp_path

    return pipeline


def outputs(root: Path) -> dict[str, dict[str, Any]]:
    """Task -> what it told Pipelines of its artifacts, of the latest run."""
    found = sorted(root.glob("*/*/executor_output.json"), key=lambda path: path.stat().st_mtime)
    return {path.parent.name: json.loads(path.read_text())["artifacts"] for path in found}


def test_the_pipeline_makes_a_good_model_with_numbers_and_reports_and_again_makes_nothing_new(run, images, volume):
    done, root = run()
    on_volume = functools.partial(images["download"].shell, options=[f"--volume={volume}:/data:ro"])
    listed = on_volume("cd /data/mnist && ls data/*/train/imgs.npz exported/*/saved_model.pb evaluation/metrics.json")
    assert listed.count("\n") == 3, done.stdout
    metrics = json.loads(on_volume("cat /data/mnist/evaluation/metrics.json"))
    assert metrics["accuracy"] > 0.93
    made = json.loads(on_volume("cat /data/mnist/model/_SUCCESS.json"))
    assert made["parameters"]["hidden"] == [64]
    assert made["results"]["version"] == 1

    told = outputs(root)
    assert set(told) == {"mnist-download", "mnist-train", "mnist-evaluate"}
    numbers = told["mnist-evaluate"]["metrics"]["artifacts"][0]["metadata"]
    assert numbers["accuracy"] == pytest.approx(metrics["accuracy"])
    for task, folder in (("mnist-train", "model"), ("mnist-evaluate", "evaluation")):
        report = Path(told[task]["report"]["artifacts"][0]["uri"]).read_text()
        assert report == on_volume(f"cat /data/mnist/{folder}/report.html")
        assert "<html" in report

    done, _ = run()
    assert done.stdout.count("is up to date") >= 2, done.stdout
    assert on_volume("ls /data/mnist/exported | grep -c '^[0-9]'") == "1\n"


def test_nothing_comes_of_a_wrong_parameter_and_a_model_that_is_not_good_enough_ends_the_line(run, images, volume):
    # Not what is printed: the runner loses the words of a container that ends at once.
    done, root = run(epochs=0)
    assert set(outputs(root)) == {"mnist-download"}, done.stdout
    listed = images["download"].shell("ls /data/mnist", [f"--volume={volume}:/data:ro"])
    assert listed == "data\n"

    done, root = run(epochs=1, acceptable_accuracy=0.9999)
    assert set(outputs(root)) == {"mnist-download", "mnist-train"}, done.stdout
    listed = images["download"].shell("ls /data/mnist/evaluation", [f"--volume={volume}:/data:ro"])
    assert "report.html" in listed
