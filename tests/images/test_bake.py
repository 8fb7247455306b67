"""docker-bake.hcl and the requirement files: what would be built, without building it."""

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from mlcore.cli import STEPS
from tests.images.containers import VARIANTS

TENSORFLOW = ("tensorflow", "tensorflow-cpu")


@pytest.fixture
def bake(project: Path, engine: None):
    """Calls `docker buildx bake --print`: target name -> what would be built."""

    def printed(*targets: str, **variables: str) -> dict[str, Any]:
        result = subprocess.run(
            ["docker", "buildx", "bake", "--print", *targets],
            cwd=project, env={**os.environ, **variables}, capture_output=True, text=True, check=True,
        )  # fmt: skip
        return json.loads(result.stdout)["target"]

    return printed


def versions(file: Path) -> dict[str, set[str]]:
    """Package -> versions in a requirement file."""
    found: dict[str, set[str]] = {}
    for name, version in re.findall(r"^([a-z0-9-]+)==([^ ;\\]+)", file.read_text(), re.MULTILINE):
        found.setdefault(name, set()).add(version)
    return found


def test_every_step_has_an_image_and_every_image_is_a_step_or_a_variant_of_one(bake):
    assert sorted(bake()) == sorted([*STEPS, *VARIANTS])
    for name, step in VARIANTS.items():
        assert bake(name)[name]["args"] == {"FLAVOUR": "client", "STEP": step}


def test_one_step_can_be_built_alone(bake):
    (target,) = bake("convert").values()
    assert target["args"] == {"FLAVOUR": "convert", "STEP": "convert"}
    assert target["tags"] == ["mlcore/convert:latest"]


def test_the_light_and_tf_groups_share_out_the_steps(bake, project):
    light, tf = bake("light"), bake("tf")
    assert sorted([*light, *tf]) == sorted([*STEPS, *VARIANTS])
    for targets, expected in ((light, False), (tf, True)):
        for target in targets.values():
            file = project / "docker" / "requirements" / f"{target['args']['FLAVOUR']}.txt"
            assert any(name in versions(file) for name in TENSORFLOW) is expected


def test_variables_reach_names_labels_base_platforms_and_caches(bake, tmp_path):
    pip_config = tmp_path / "pip.conf"
    pip_config.write_text("[global]\n")
    target = bake(
        "train", REGISTRY="registry.example.org/ml", TAG="1.2.0", VERSION="1.2.0", REVISION="abc",
        PYTHON_IMAGE="python:3.11-slim-bookworm@sha256:" + 64 * "0", PLATFORMS="linux/amd64,linux/arm64",
        CACHE_FROM="type=registry,ref=x", CACHE_TO="type=inline", ATTEST="true", PIP_CONFIG=str(pip_config),
    )["train"]  # fmt: skip
    assert target["tags"] == ["registry.example.org/ml/train:1.2.0"]
    assert target["labels"]["org.opencontainers.image.version"] == "1.2.0"
    assert target["labels"]["org.opencontainers.image.revision"] == "abc"
    assert target["contexts"]["base"].endswith("@sha256:" + 64 * "0")
    assert target["platforms"] == ["linux/amd64", "linux/arm64"]
    assert target["cache-from"] and target["cache-to"]
    assert len(target["attest"]) == 2
    assert target["secret"] == [f"id=pip_config,src={pip_config}"]


def test_plain_builds_ask_for_nothing_that_the_local_builder_lacks(bake):
    for target in bake().values():
        assert not {"attest", "platforms", "cache-from", "cache-to", "secret"} & set(target)


def test_gpu_images_of_the_training_steps_carry_cuda(bake, project):
    targets = bake("gpu")
    assert sorted(targets) == ["mnist-train-gpu", "train-gpu"]
    for target in targets.values():
        found = versions(project / "docker" / "requirements" / f"{target['args']['FLAVOUR']}.txt")
        assert "nvidia-cudnn-cu12" in found and "tensorflow" in found and "tensorflow-cpu" not in found
        assert target["tags"][0].endswith("-gpu")


def test_checks_leave_no_image(bake):
    assert {target["output"][0] for target in bake("check").values()} == {"type=cacheonly"}


def test_no_version_differs_between_the_requirement_files(project):
    files = sorted((project / "docker" / "requirements").glob("*.txt"))
    development = versions(project / "docker" / "requirements" / "dev.txt")
    for file in files:
        for name, found in versions(file).items():
            assert found <= development.get(name, found), f"{file.name}: {name}"


def test_requirements_are_pinned_with_hashes_and_name_no_index(project):
    for file in (project / "docker" / "requirements").glob("*.txt"):
        text = file.read_text()
        assert "://" not in text and "--index" not in text and "--find-links" not in text, file.name
        for requirement in re.split(r"\n(?=\S)", text.strip()):
            assert re.match(r"[a-z0-9-]+==\S+", requirement) and "--hash=sha256:" in requirement, requirement[:80]


def test_tensorflow_for_other_machines_is_locked_as_well(project):
    for flavour in ("tensorflow", "predict", "detection"):
        text = (project / "docker" / "requirements" / f"{flavour}.txt").read_text()
        assert "tensorflow==2.20.0 ; platform_machine != 'x86_64'" in text


def test_the_dockerfile_fetches_no_frontend_and_no_system_package(project):
    text = (project / "docker" / "Dockerfile").read_text()
    assert "syntax=" not in text and "apt" not in text and "curl" not in text
