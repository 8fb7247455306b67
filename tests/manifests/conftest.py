"""The rendered overlays and the definitions to check them with."""

import os
from functools import cache
from pathlib import Path

import pytest
import yaml

from tests.conftest import PROJECT
from tests.manifests import apis, pods, steps
from tests.manifests.rendering import Document, render

OVERLAYS = sorted(path.parent.name for path in (PROJECT / "manifests" / "overlays").glob("*/kustomization.yaml"))

# What the training steps write for Katib; test_katib.py looks whether they really do.
PRINTED = {
    "mnist-train": {"accuracy", "loss", "train_accuracy", "train_loss", "test_accuracy"},
    "train": {"coco_ap", "ap50", "ap75", "ar_100_detections", "loss"},
}
EVENTS = {
    "mnist-train": {"train/loss", "train/accuracy", "train/learning_rate", "validation/loss", "validation/accuracy"},
    "train": {"validation/coco_ap", "validation/ap50", "validation/ap75"},
}


@cache
def rendered(overlay: str) -> list[Document]:
    """An overlay, rendered once."""
    return render(PROJECT / "manifests" / "overlays" / overlay)


@cache
def with_runtime(overlay: str) -> list[Document]:
    """An overlay; one with a TrainJob with the runtime that it refers to."""
    documents = list(rendered(overlay))
    if any(document["kind"] == "TrainJob" for document in documents):
        documents += rendered("trainer-runtime")
    return documents


@cache
def known_images() -> tuple[str, ...]:
    """The images that manifests/images names."""
    component = yaml.safe_load((PROJECT / "manifests" / "images" / "kustomization.yaml").read_text())
    return tuple(f"{image['newName']}:{image['newTag']}" for image in component["images"])


@pytest.fixture(scope="session")
def kubeflow() -> apis.Validator:
    """Kubeflow's own definitions: shared/crds beside the checkout, or $MLCORE_TEST_CRDS."""
    folder = Path(os.environ.get("MLCORE_TEST_CRDS") or PROJECT.parent / "shared" / "crds")
    assert folder.is_dir(), f"{folder} is missing: the API definitions of Kubeflow"
    return apis.definitions(folder)


CHECKS = {
    "security": pods.security,
    "resources": pods.resources,
    "volumes": pods.volumes,
    "images": lambda documents: pods.images(documents, known_images()),
    "names": pods.names,
    "annotations": pods.annotations,
    "selectors": pods.selectors,
    "access": pods.access,
    "arguments": steps.arguments,
    "exit_codes": steps.exit_codes,
    "clusters": steps.clusters,
    "indexed": steps.indexed,
    "flow": steps.flow,
    "patience": steps.patience,
    "katib": lambda documents: apis.katib(documents, {"StdOut": PRINTED, "TensorFlowEvent": EVENTS}),
    "kserve": apis.kserve,
}
