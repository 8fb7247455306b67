"""The pages on Kubeflow name flags, overlays and files that exist."""

import re
from pathlib import Path

import pytest
import yaml

from mlcore.cli import STEPS, _common, load_step
from mlcore.runtime.parameters import parameters_of
from tests.manifests.conftest import OVERLAYS, rendered
from tests.manifests.rendering import find, of_kind

PAGES = ("kubeflow", "katib", "from-the-tutorials")
OF_OTHERS = {
    "--name",
    "--watch",
    "--follow",
    "--push",
    "--server-side",
    "--volume",
    "--log",
}  # kubectl, docker, --name=value


@pytest.fixture(params=PAGES)
def page(request, project: Path) -> str:
    return (project / "docs" / f"{request.param}.md").read_text()


def test_flags_exist(page):
    functions = (_common, *map(load_step, STEPS))
    flags = {parameter.flag for function in functions for parameter in parameters_of(function)}
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", page))
    assert named - flags - OF_OTHERS == set()


def test_files_and_overlays_exist(page, project):
    for path in re.findall(r"`(manifests/[\w./-]+)`", page):
        assert (project / path).exists(), path
    for path in re.findall(r"kubectl apply (?:--server-side )?-k (\S+)", page):
        assert (project / path / "kustomization.yaml").is_file(), path
    for path in re.findall(r"\]\((\.\./[^)]+)\)", page):
        assert (project / "docs" / path).exists(), path


def test_every_overlay_is_explained(project):
    text = (project / "docs" / "kubeflow.md").read_text()
    assert [overlay for overlay in OVERLAYS if f"`{overlay}`" not in text] == []


@pytest.mark.parametrize(("page_name", "overlay"), [("kubeflow", "pets"), ("katib", "katib-mnist")])
def test_what_apply_is_said_to_create_is_what_the_overlay_holds(project, page_name, overlay):
    text = (project / "docs" / f"{page_name}.md").read_text()
    said = re.findall(r"^([a-z]+)[\w.]*/([\w-]+) created$", text, re.MULTILINE)
    assert sorted(said) == sorted(
        (document["kind"].lower(), document["metadata"]["name"]) for document in rendered(overlay)
    )


def test_what_each_pod_is_said_to_wait_for_is_what_it_waits_for(project):
    text = (project / "docs" / "kubeflow.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("|")]
    for job in of_kind(rendered("pets"), "Job"):
        row = next(row for row in rows if f"`{job['metadata']['name']}`" in row)
        waits = job["spec"]["template"]["spec"].get("initContainers", [])
        wanted = waits[0]["args"][1].removesuffix("/*/saved_model.pb") if waits else "nothing"
        assert wanted in row
    workers = find(rendered("pets"), "TFJob")["spec"]["tfReplicaSpecs"]["Worker"]["replicas"]
    assert f"`pets-worker-0…{workers - 1}`" in text


def test_the_example_of_a_search_is_yaml(project):
    (block,) = re.findall(r"```yaml\n(.*?)```", (project / "docs" / "katib.md").read_text(), re.DOTALL)
    assert yaml.safe_load(block.replace("…", "x: 1").partition("  trialSpec:")[0])["parameters"]
