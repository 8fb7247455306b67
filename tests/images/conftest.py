"""The images, built once from this checkout, and containers that leave nothing behind."""

import json
import os
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.images.containers import Image, docker

TAG = "test"


@pytest.fixture(scope="session")
def engine() -> None:
    """A running container engine."""
    if docker("info", check=False).returncode != 0:
        pytest.fail("these tests need a running container engine: `docker info` does not answer")


@pytest.fixture(scope="session")
def images(engine: None, project: Path) -> dict[str, Image]:
    """Name -> image of every step and variant, built by `docker buildx bake` under a tag of their own."""
    environment = {**os.environ, "TAG": TAG, "BUILDX_NO_DEFAULT_ATTESTATIONS": "1"}
    built = subprocess.run(["docker", "buildx", "bake", "--progress=plain"], cwd=project, env=environment,
                           stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)  # fmt: skip
    assert built.returncode == 0, "docker buildx bake failed:\n" + built.stdout[-4000:]
    printed = subprocess.run(["docker", "buildx", "bake", "--print"], cwd=project, env=environment,
                             capture_output=True, text=True, check=True)  # fmt: skip
    return {
        name: Image(name, target["args"]["STEP"], target["args"]["FLAVOUR"], target["tags"][0])
        for name, target in json.loads(printed.stdout)["target"].items()
    }


@pytest.fixture(scope="session")
def pipe(images: dict[str, Image]) -> Iterator[str]:
    """A volume with a named pipe, /data/pipe, that nobody writes to: a step given it as --config waits for ever."""
    name = f"mlcore-test-{uuid.uuid4().hex[:12]}"
    images["download"].shell("mkfifo -m 644 /data/pipe", [f"--volume={name}:/data"])
    yield name
    docker("volume", "rm", "--force", name)


@pytest.fixture
def volume(engine: None) -> Iterator[str]:
    """A new volume."""
    name = f"mlcore-test-{uuid.uuid4().hex[:12]}"
    docker("volume", "create", name)
    yield name
    docker("volume", "rm", "--force", name)


@pytest.fixture
def container(engine: None) -> Iterator[str]:
    """A name for a container, which is removed at the end."""
    name = f"mlcore-test-{uuid.uuid4().hex[:12]}"
    yield name
    docker("rm", "--force", name, check=False)
