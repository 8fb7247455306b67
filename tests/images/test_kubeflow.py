"""The images of launch and deploy against an API server: as an orchestrator runs them, without privileges."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.images.containers import HARDENED, docker
from tests.kubeflow.api_server import ApiServer, Definitions
from tests.kubeflow.operators import KServe, Run, TrainingOperator
from tests.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

MANIFEST = """
apiVersion: kubeflow.org/v1
kind: TFJob
metadata: {name: digits}
spec:
  tfReplicaSpecs:
    Worker:
      replicas: ${workers}
      template: {spec: {containers: [{name: tensorflow, image: mlcore/mnist-train}]}}
"""
JOB = ("kubeflow.org/tfjobs", "team", "digits")


@pytest.fixture
def api(project: Path) -> Iterator[ApiServer]:
    """An API server on this machine's loopback."""
    folder = Path(os.environ.get("MLCORE_TEST_CRDS") or project.parent / "shared" / "crds")
    with ApiServer(Definitions(folder)).serving() as server:
        yield server


@pytest.fixture
def options(api: ApiServer, tmp_path: Path) -> tuple[str, ...]:
    """What a container needs to reach the server: the network of this machine, and a kubeconfig."""
    config = api.kubeconfig(tmp_path / "kubeconfig")
    config.chmod(0o644)
    tmp_path.chmod(0o755)
    return (*HARDENED, "--network=host", f"--volume={config}:/etc/kubeconfig:ro", "--env=KUBECONFIG=/etc/kubeconfig")


def test_launch_follows_a_job_and_deploy_serves_a_version(images, api, options):
    with TrainingOperator(api, {"worker-0": [Run(["accuracy=0.97"])]}).working(), KServe(api).working():
        launched = images["launch"].run(f"--manifest={MANIFEST}", "--set=workers=2", options=options)
        assert (launched.returncode, launched.stdout.splitlines()[0]) == (0, "accuracy=0.97"), launched.stderr
        deployed = images["deploy"].run("--model-name=pets", "--storage-uri=pvc://models/pets", options=options)
    assert "url=http://pets.team.example.com\n" in deployed.stdout, deployed.stderr


def test_launch_deletes_its_job_on_sigterm(images, api, options, container):
    with TrainingOperator(api, {}).working():
        docker("run", "--detach", f"--name={container}", *options, images["launch"].reference,
               f"--manifest={MANIFEST}", "--set=workers=1", "--delete-on-stop=true")  # fmt: skip
        wait_until(lambda: any(pod.get("status", {}).get("phase") == "Running" for pod in api.store.list("pods")))
        docker("kill", "--signal=TERM", container)
        assert docker("wait", container, timeout=12).stdout.strip() == "143"
    assert api.store.get(JOB) is None


def test_no_cluster_is_said_in_one_line(images):
    said = images["launch"].run("--manifest=kind: Job\napiVersion: batch/v1\nmetadata: {name: a}\nspec: {}")
    assert said.returncode == 2
    assert said.stderr.startswith("mlcore launch: error: no cluster is configured") and said.stderr.count("\n") == 1
