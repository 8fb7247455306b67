"""local-tfjob understands every TFJob of manifests/."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml

from mlcore.kubeflow.local.node import Node
from mlcore.kubeflow.local.tfjob import Manifest, parse_tfjob
from mlcore.kubeflow.local_tfjob import plan_all


def test_every_replica_of_our_manifests_has_a_plan(project):
    kubectl = Path(sys.executable).with_name("kubectl")

    def jobs(overlay):
        done = subprocess.run([kubectl, "kustomize", overlay], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        return overlay.name, [each for each in yaml.load_all(done.stdout, loader) if each and each["kind"] == "TFJob"]

    overlays = sorted((project / "manifests" / "overlays").iterdir())
    with ThreadPoolExecutor(4) as pool:
        found = {name: objects for name, objects in pool.map(jobs, overlays) if objects}
    assert {"mnist", "pets"} <= set(found)
    for name, objects in found.items():
        for each in objects:
            job = parse_tfjob(Node(each))
            plans = plan_all(Manifest(job, {}), cpus=2, directories={})
            assert len(plans) == job.total > 0
            for plan in plans:
                assert "gpu" in name or not plan.notes, (name, plan.notes)
                config = [option for option in plan.main.options if option.startswith("--env=TF_CONFIG=")]
                assert len(config) == (job.total > 1), name
