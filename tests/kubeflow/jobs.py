"""TFJobs for the tests."""

import copy
import textwrap
from pathlib import Path
from typing import Any

import yaml

from mlcore.kubeflow.local.node import Node
from mlcore.kubeflow.local.tfjob import Manifest, TFJob, parse_tfjob


def template(**container: Any) -> dict[str, Any]:
    """A pod template."""
    return {"spec": {"containers": [{"name": "tensorflow", "image": "image", **container}]}}


def job_object(name: str = "myjob", namespace: str = "kubeflow", **specs: Any) -> dict[str, Any]:
    """A TFJob with the replicas of each type that is given: a number, or the whole replica."""
    runs = specs.pop("runPolicy", {})
    more = {key: specs.pop(key) for key in ("successPolicy", "enableDynamicWorker") if key in specs}
    replicas = {
        kind: {"replicas": spec, "template": template()} if isinstance(spec, int) else spec
        for kind, spec in specs.items()
    }
    return copy.deepcopy({
        "apiVersion": "kubeflow.org/v1", "kind": "TFJob", "metadata": {"name": name, "namespace": namespace},
        "spec": {"runPolicy": runs, **more, "tfReplicaSpecs": replicas},
    })  # fmt: skip


def job(**specs: Any) -> TFJob:
    """The same, read."""
    return parse_tfjob(Node(job_object(**specs)))


def manifest(container: dict[str, Any] | None = None, pod: dict[str, Any] | None = None, *files: Any) -> Manifest:
    """A job of a chief and a worker with this container and this pod, and ConfigMaps and Secrets."""
    shape = template(**(container or {}))
    shape["spec"] |= pod or {}
    found = {(file["kind"], file["metadata"]["name"]): Node(file) for file in files}
    return Manifest(job(Chief={"template": shape}, Worker={"template": shape}), found)


def write(path: Path, *documents: Any) -> Path:
    """A manifest of some documents, as objects or as text."""
    texts = [text if isinstance(text, str) else yaml.safe_dump(text) for text in documents]
    path.write_text("\n---\n".join(map(textwrap.dedent, texts)))
    return path
