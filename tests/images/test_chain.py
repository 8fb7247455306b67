"""The chains by `docker run` on real data, as uid 10001, on one volume, through the scripts that users have."""

import os
import re
import subprocess
import time
from pathlib import Path

import pytest

from tests.images.conftest import TAG
from tests.images.containers import OFFLINE, docker

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture
def script(project: Path, images, volume):
    """Runs a script of examples/docker on the volume of the test; what it printed on stdout and stderr."""

    def run(name: str, *arguments: str, **variables: str) -> tuple[str, str]:
        result = subprocess.run(
            ["sh", project / "examples" / "docker" / name, *arguments],
            env={**os.environ, "TAG": TAG, "VOLUME": volume, **variables},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
        return result.stdout, result.stderr

    return run


@pytest.fixture
def results(script):
    """Runs a script; result name -> last value that a step printed."""

    def run(name: str, *arguments: str, **variables: str) -> dict[str, str]:
        stdout, stderr = script(name, *arguments, **variables)
        assert not re.search(r"Traceback|not a writable directory|fontconfig|Fontconfig", stderr), stderr
        assert not re.search(r"^\S+ (INFO|WARNING|ERROR) ", stdout, re.MULTILINE), "logs belong on stderr"
        return dict(re.findall(r"^(?:\S+Z )?([a-z0-9_]+)=(.*)$", stdout, re.MULTILINE))

    return run


def owners(images, volume: str) -> set[str]:
    """The uids that own what is on a volume."""
    found = images["download"].shell("find /data -mindepth 1 -exec stat -c %u {} +", [f"--volume={volume}:/data"])
    return set(found.split())


def test_detection_from_an_archive_to_predictions(results, images, volume, shared_data, container):
    found = results("detection.sh", str(shared_data), "bccd.tar.gz", "BCCD/JPEGImages/BloodImage_0000*.jpg",
                    TRAIN_STEPS="150", IMAGE_SIZE="192x256")  # fmt: skip
    assert int(found["images"]) >= 9  # of predict, the last step
    assert float(found["ap50"]) > 0.1
    assert owners(images, volume) == {"10001"}
    listed = images["predict"].shell("cd /data && ls */_SUCCESS.json predictions", [f"--volume={volume}:/data"])
    for directory in ("raw", "records", "predictions"):
        assert f"{directory}/_SUCCESS.json" in listed

    # Training goes on from its last checkpoint, and SIGTERM saves another one.
    docker("run", "--detach", f"--name={container}", *OFFLINE, f"--volume={volume}:/data", images["train"].reference,
           "--data-dir=/data/records", "--model-dir=/data/model2", "--preset=retinanet-mobile", "--steps=5000",
           "--image-size=128x128")  # fmt: skip
    deadline = time.monotonic() + 180
    while "step" not in docker("logs", container).stdout and time.monotonic() < deadline:
        time.sleep(1)
    assert docker("inspect", "--format={{.State.Running}}", container).stdout.strip() == "true", docker(
        "logs", container
    ).stderr
    started = time.monotonic()
    docker("kill", "--signal=TERM", container)
    assert docker("wait", container).stdout.strip() == "143"
    assert time.monotonic() - started < 10
    saved = images["predict"].shell("ls /data/model2", [f"--volume={volume}:/data"])
    assert re.search(r"ckpt-\d+\.index", saved), saved


def test_mnist_from_the_four_files_to_an_evaluation(results, images, volume, shared_data):
    found = results("mnist.sh", str(shared_data / "mnist"), EPOCHS="2")
    assert float(found["accuracy"]) > 0.95
    assert owners(images, volume) == {"10001"}


def test_mnist_as_an_arbitrary_user_of_group_0(results, images, volume, shared_data):
    found = results("mnist.sh", str(shared_data / "mnist"), EPOCHS="1", STEP_USER="1000740000:0")
    assert float(found["accuracy"]) > 0.9
    assert owners(images, volume) == {"1000740000"}
