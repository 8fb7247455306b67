"""manifests/base/launcher-rbac: the Role allows what launch and deploy do, and nothing that they never do."""

import subprocess
import sysconfig
from pathlib import Path

import pytest
import yaml

from mlcore.kubeflow import job_kinds, job_template
from mlcore.kubeflow.answers import Forbidden
from mlcore.kubeflow.cluster import Timing
from mlcore.kubeflow.deploy import Deployment
from mlcore.kubeflow.inference_service import Model
from mlcore.kubeflow.launch import Launch
from mlcore.runtime.errors import DataError
from tests.kubeflow.operators import JobController, KServe, Rollout, Run, TrainingOperator

QUICK = Timing(patience_s=2, backoff_s=0.05, log_poll_s=0.05, log_end_s=2, gone_s=2, settle_s=0.2, rollback_s=2)
CONTAINERS = {"containers": [{"name": "tensorflow", "image": "i"}]}
TFJOB = {
    "apiVersion": "kubeflow.org/v1", "kind": "TFJob", "metadata": {"name": "digits"},
    "spec": {"tfReplicaSpecs": {"Worker": {"template": {"spec": CONTAINERS}}}},
}  # fmt: skip
JOB = {
    "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "convert"},
    "spec": {"template": {"spec": {**CONTAINERS, "restartPolicy": "Never"}}},
}  # fmt: skip


def rendered(base: Path):
    """Kind -> document of a kustomization."""
    kubectl = Path(sysconfig.get_path("scripts")) / "kubectl"
    text = subprocess.run([kubectl, "kustomize", base], capture_output=True, text=True, check=True).stdout
    return {document["kind"]: document for document in yaml.safe_load_all(text)}


@pytest.fixture(scope="module")
def role(project: Path):
    """The rules of the rendered Role."""
    found = rendered(project / "manifests" / "base" / "launcher-rbac")
    assert found["RoleBinding"]["subjects"][0]["name"] == found["ServiceAccount"]["metadata"]["name"]
    assert found["RoleBinding"]["roleRef"]["name"] == found["Role"]["metadata"]["name"]
    return found["Role"]["rules"]


def launch(job, **options):
    kind = job_kinds.kind_of(job, "m")
    made = job_template.named(job, "m", unique_name=False)
    return Launch(made, kind, namespace="team", timeout_s=10, timing=QUICK, **options).run()


def deploy(version, percent=100):
    model = Model("pets", "pvc://models/pets", version=version)
    return Deployment("pets", model, percent, namespace="team", timeout_s=5, timing=QUICK).run()


@pytest.mark.slow
def test_role_is_what_the_steps_need(api, kubeconfig, role):
    api.rules = role
    with TrainingOperator(api, {"worker-0": [Run(code=1), Run(["a=1"])]}).working():
        with pytest.raises(DataError):
            launch(TFJOB)
        assert launch(TFJOB, overwrite=True).metrics == {"a": 1}
    with JobController(api, {"pod": [Run(["b=1"])]}).working():
        assert launch(JOB).metrics == {"b": 1}
    with KServe(api, [Rollout(failure="ModelLoadFailed"), Rollout(), Rollout()]).working():
        with pytest.raises(DataError, match="is deleted again"):
            deploy(1)
        deploy(1)
        deploy(2, 10)

    used = {(verb, resource) for verb, resource, *_ in api.requests} | {("create", "inferenceservices")}
    allowed = {(verb, resource) for rule in role for resource in rule["resources"] for verb in rule["verbs"]}
    assert used <= allowed
    # A Job needs no overwriting here; Experiments and TrainJobs are asked for as TFJobs are.
    others = {(verb, resource) for verb, resource in allowed if resource in ("experiments", "trainjobs")}
    used.add(("list", "events"))  # of a job that is not done in time and has no pods
    assert {verb for verb, _ in others} == {verb for verb, resource in used if resource == "tfjobs"}
    assert allowed - used - others == {("delete", "jobs")}


@pytest.mark.parametrize("missing", ["create", "watch"])
def test_a_verb_less_and_the_message_names_it(api, kubeconfig, role, missing):
    api.rules = [{**rule, "verbs": [verb for verb in rule["verbs"] if verb != missing]} for rule in role]
    for work in (lambda: launch(TFJOB), lambda: deploy(1)):
        with pytest.raises(Forbidden, match=f'verbs: ."{missing}".'):
            work()
