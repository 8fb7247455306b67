"""A cluster with a parameter server in containers, by examples/cluster/compose.yaml: it trains and ends by itself."""

import json
import os
import re
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.images.conftest import TAG
from tests.images.containers import docker

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture
def compose(images, project: Path, shared_data: Path) -> Iterator:
    """Calls `docker compose` on the example; what it leaves is removed at the end."""
    environment = {
        **os.environ, "PROJECT": f"mlcore-test-{uuid.uuid4().hex[:8]}", "TAG": TAG, "EPOCHS": "2",
        "DATA": str(shared_data / "mnist"),
    }  # fmt: skip
    file = project / "examples" / "cluster" / "compose.yaml"

    def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
        command = ["docker", "compose", "--ansi=never", f"--file={file}", *arguments]
        return subprocess.run(command, env=environment, text=True, capture_output=True, timeout=400, check=False)

    yield run
    run("down", "--volumes", "--timeout=1")


def test_every_member_ends_by_itself_with_0_and_the_model_is_exported(compose, images):
    result = compose("up")
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    ended = [json.loads(line) for line in compose("ps", "--all", "--format=json").stdout.splitlines()]
    codes = {member["Service"]: (member["State"], member["ExitCode"]) for member in ended}
    assert codes == dict.fromkeys(("chief", "worker-0", "worker-1", "ps", "evaluator"), ("exited", 0)), (
        codes,
        result.stdout[-4000:],
    )
    accuracy = re.findall(r"chief-1 .*Z (?:test_)?accuracy=([\d.]+)", result.stdout)
    assert float(accuracy[-1]) > 0.9
    project = ended[0]["Project"]
    listed = docker("run", "--rm", "--network=none", f"--volume={project}_results:/data:ro", "--entrypoint=sh",
                    images["download"].reference, "-c", "ls -d /data/export/*/saved_model.pb").stdout  # fmt: skip
    assert listed == "/data/export/1/saved_model.pb\n"
