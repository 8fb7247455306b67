"""local-tfjob understands every TFJob of manifests/."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mlcore.kubeflow.local.node import Node
from mlcore.kubeflow.local.tfjob import Manifest, parse_tfjob
from mlcore.kubeflow.local_tfjob import plan_all

OVERLAYS = sorted((Path(__file__).resolve().parents[2] / "manifests" / "overlays").iterdir())


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.name)
def test_every_replica_has_a_plan(overlay):
    kubectl = Path(sys.executable).with_name("kubectl")
    done = subprocess.run([kubectl, "kustomize", overlay], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    documents = [each for each in yaml.safe_load_all(done.stdout) if each]
    for document in documents:
        if document["kind"] == "TFJob":
            job = parse_tfjob(Node(document))
            plans = plan_all(Manifest(job, {}), cpus=2, directories={})
            assert len(plans) == job.total > 0
            assert not any(plan.notes for plan in plans if "gpu" not in overlay.name), overlay
            for plan in plans:
                config = [option for option in plan.main.options if option.startswith("--env=TF_CONFIG=")]
                assert len(config) == (job.total > 1)


def test_there_are_some():
    found = [path for path in OVERLAYS if path.name in ("mnist", "pets")]
    assert len(found) == 2
