"""What the images weigh, how they are rebuilt, and the list of what is in them."""

import json
import os
import shutil
import subprocess
import sys
import time

import pytest

from mlcore import __version__
from tests.images.conftest import TAG
from tests.images.containers import docker

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def test_each_image_is_within_its_bound(images, project):
    result = subprocess.run([sys.executable, project / "docker" / "sizes.py"], env={**os.environ, "TAG": TAG},
                            capture_output=True, text=True, check=False)  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    for image in images.values():
        assert image.reference in result.stdout


def test_steps_of_one_flavour_share_all_layers_but_the_last(images):
    by_flavour: dict[str, list[list[str]]] = {}
    for image in images.values():
        (details,) = json.loads(docker("image", "inspect", image.reference).stdout)
        by_flavour.setdefault(image.flavour, []).append(details["RootFS"]["Layers"])
    for layers in by_flavour.values():
        assert len({tuple(each[:-1]) for each in layers}) == 1
    # A flavour stands on the one before it.
    tensorflow, detection = by_flavour["tensorflow"][0], by_flavour["detection"][0]
    assert detection[: len(tensorflow) - 2] == tensorflow[:-2]


def test_a_changed_line_rebuilds_all_images_within_a_minute(images, project, tmp_path):
    copied = tmp_path / "project"
    copied.mkdir()
    for name in ("docker-bake.hcl", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(project / name, copied)
    for name in ("docker", "mlcore", "steps"):
        shutil.copytree(project / name, copied / name, ignore=shutil.ignore_patterns("__pycache__"))
    module = copied / "mlcore" / "__init__.py"
    module.write_text(module.read_text().replace(__version__, "9.9.9"))
    started = time.monotonic()
    subprocess.run(["docker", "buildx", "bake"], cwd=copied, env={**os.environ, "TAG": "test-changed"},
                   capture_output=True, check=True)  # fmt: skip
    seconds = time.monotonic() - started
    changed = [image.reference.replace(":test", ":test-changed") for image in images.values()]
    try:
        assert docker("run", "--rm", "--network=none", changed[0], "--version").stdout == "mlcore 9.9.9\n"
    finally:
        docker("image", "rm", *changed)
    assert seconds <= 60


def test_the_bill_of_materials_names_every_package_and_its_licence(images, project, tmp_path):
    docker("buildx", "bake", f"--file={project / 'docker-bake.hcl'}", "sbom-data",
           f"--set=*.output=type=local,dest={tmp_path}", f"--set=*.context={project}")  # fmt: skip
    components = json.loads((tmp_path / "data.cdx.json").read_text())["components"]
    found = {component["name"].lower(): component["version"] for component in components}
    assert found["mlcore"] == __version__
    assert {"numpy", "pillow", "lxml"} <= set(found)
    printed = subprocess.run([sys.executable, project / "docker" / "licences.py", tmp_path], capture_output=True,
                             text=True, check=True).stdout  # fmt: skip
    assert len(printed.splitlines()) == len(components)
    assert "Apache-2.0" in next(line for line in printed.splitlines() if line.startswith("mlcore "))
