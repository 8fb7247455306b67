"""Every overlay, rendered as `kubectl apply -k` does, passes every check."""

import re

import pytest

from tests.manifests import apis
from tests.manifests.conftest import CHECKS, OVERLAYS, known_images, rendered, with_runtime
from tests.manifests.rendering import of_kind, workloads


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_definitions_of_kubernetes_and_kubeflow_hold(overlay, kubeflow):
    assert apis.schemas(rendered(overlay), kubeflow) == []


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_check_passes(overlay):
    found = {name: check(with_runtime(overlay)) for name, check in CHECKS.items()}
    assert {name: problems for name, problems in found.items() if problems} == {}


def cuda_image(step):
    """The image of a step with CUDA, whatever registry and tag `make manifests` was given."""
    (image,) = (name for name in known_images() if re.search(rf"/{step}:", name) and not name.endswith("-gpu"))
    return f"{image}-gpu"


def test_the_images_with_cuda_are_those_that_are_built(project):
    from manifests.generate import GPU

    bake = (project / "docker-bake.hcl").read_text()
    (line,) = re.findall(r'contains\(\[("[a-z-]+", "[a-z-]+")\], step\.name\)', bake)
    assert set(GPU) == set(re.findall(r'"([a-z-]+)"', line))
    assert {image for image in known_images() if image.endswith("-gpu")} == {cuda_image(step) for step in GPU}


def test_a_training_with_gpus_asks_for_them_and_runs_the_image_with_cuda():
    for workload in workloads(rendered("pets-gpu-cluster")):
        if workload.kind == "TFJob":
            assert workload.step["image"] == cuda_image("train")
            gpus = workload.step["resources"]["limits"].get("nvidia.com/gpu", 0)
            assert gpus == (1 if workload.role in ("Worker", "Evaluator") else 0)


def test_the_claim_is_shared_by_nodes_except_on_one_machine():
    for overlay in OVERLAYS:
        for claim in of_kind(rendered(overlay), "PersistentVolumeClaim"):
            expected = "ReadWriteOnce" if overlay.endswith("-one-machine") else "ReadWriteMany"
            assert (claim["spec"]["accessModes"], claim["spec"]["volumeMode"]) == ([expected], "Filesystem")
