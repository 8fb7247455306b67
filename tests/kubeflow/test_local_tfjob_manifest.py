"""local-tfjob reads a manifest as the operator would, and names the field that is wrong."""

import io

import pytest

from mlcore import cli
from mlcore.kubeflow.local.node import Node
from mlcore.kubeflow.local.tfjob import parse_tfjob, read_manifest
from mlcore.runtime.errors import UsageError
from tests.kubeflow.jobs import job, job_object, template, write


def test_operator_defaults_are_filled_in():
    read = job(worker={"template": template()}, ps=2)
    assert list(read.replica_specs) == ["PS", "Worker"]  # whatever their case in the manifest
    worker = read.replica_specs["Worker"]
    assert (worker.replicas, worker.restart_policy, worker.port) == (1, "Never", 2222)
    assert (read.clean_pod_policy, read.success_policy, read.backoff_limit, read.active_deadline_s) == (
        "None", "", None, None,
    )  # fmt: skip
    assert read.pod_name("Worker", 1) == "myjob-worker-1"
    assert read.host_name("PS", 0) == "myjob-ps-0.kubeflow.svc"


def test_port_is_that_of_tfjob_port():
    ports = [{"name": "metrics", "containerPort": 9}, {"name": "tfjob-port", "containerPort": 3333}]
    assert job(Worker={"template": template(ports=ports)}).replica_specs["Worker"].port == 3333


def test_job_is_found_among_the_documents_of_a_kustomization(tmp_path):
    path = write(tmp_path / "all.yaml", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "n"}},
                 "", job_object(name="first", Worker=1),
                 {"apiVersion": "v1", "kind": "List", "items": [job_object(name="second", Worker=1)]})  # fmt: skip
    assert read_manifest(path, name="first").job.name == "first"
    assert read_manifest(path, name="second").job.name == "second"
    with pytest.raises(UsageError, match=r"all.yaml: 2 TFJobs in it; choose one by --name: first, second"):
        read_manifest(path)
    with pytest.raises(UsageError, match=r"--name=third: .*all.yaml has first, second"):
        read_manifest(path, name="third")


def test_manifest_comes_from_standard_input(monkeypatch, tmp_path):
    text = write(tmp_path / "job.yaml", job_object(Worker=1)).read_text()
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    from pathlib import Path

    assert read_manifest(Path("-")).job.name == "myjob"


def test_namespace_is_the_manifests_else_the_flags_else_default():
    without = job_object(Worker=1)
    del without["metadata"]["namespace"]
    assert parse_tfjob(Node(without)).namespace == "default"
    assert parse_tfjob(Node(without), "team").namespace == "team"
    assert parse_tfjob(Node(job_object(Worker=1)), "team").namespace == "kubeflow"


def changed(change):
    """A good job, changed in one place."""
    value = job_object(Chief=1, Worker=2)
    change(value)
    return value


def put(*path_and_value):
    *path, last, new = path_and_value

    def change(value):
        for key in path:
            value = value[key]
        value[last] = new

    return change


CONTAINER = ("spec", "tfReplicaSpecs", "Worker", "template", "spec", "containers", 0)
REFUSED = {
    "name with capitals": (put("metadata", "name", "MyJob"), "metadata.name=MyJob: must be a DNS-1035 label"),
    "name that begins with a digit": (put("metadata", "name", "1job"), "metadata.name=1job: must be a DNS-1035 label"),
    "name of 64 letters": (put("metadata", "name", "a" * 64), "must be a DNS-1035 label"),
    "name too long for a Service": (put("metadata", "name", "a" * 55), "too long: there can be no Service aaa"),
    "no name": (put("metadata", "name", None), "metadata.name: must be given"),
    "other version": (put("apiVersion", "kubeflow.org/v2"), "apiVersion=kubeflow.org/v2: expected kubeflow.org/v1"),
    "no replicas": (put("spec", "tfReplicaSpecs", None), "spec.tfReplicaSpecs: must be given"),
    "both Chief and Master": (
        put("spec", "tfReplicaSpecs", "Master", {"template": template()}),
        "spec.tfReplicaSpecs: must not have more than one Chief or Master role",
    ),
    "unknown type": (
        put("spec", "tfReplicaSpecs", "Wroker", {"template": template()}),
        "spec.tfReplicaSpecs[Wroker]: no type of replica; expected one of Chief, Evaluator, Master, PS, Worker",
    ),
    "container of another name": (
        put(*CONTAINER, "name", "trainer"),
        "spec.tfReplicaSpecs[Worker].template.spec.containers: must have a container with the name tensorflow (it has "
        "trainer)",
    ),
    "no container": (put(*CONTAINER[:-2], "containers", []), "template.spec.containers: must be given"),
    "no image": (put(*CONTAINER, "image", ""), "spec.tfReplicaSpecs[Worker].template.spec.containers[0].image"),
    "unknown restart policy": (
        put("spec", "tfReplicaSpecs", "Chief", "restartPolicy", "Sometimes"),
        "spec.tfReplicaSpecs[Chief].restartPolicy=Sometimes: expected one of Always, OnFailure, Never, ExitCode",
    ),
    "replicas as text": (
        put("spec", "tfReplicaSpecs", "Worker", "replicas", "2"),
        "spec.tfReplicaSpecs[Worker].replicas=2: expected a whole number from 0",
    ),
    "slip in a field": (
        put("spec", "runPolicy", "cleanPodsPolicy", "All"),
        "spec.runPolicy.cleanPodsPolicy: not known to mlcore local-tfjob; did you mean cleanPodPolicy?",
    ),
    "unknown clean-up": (
        put("spec", "runPolicy", "cleanPodPolicy", "Some"),
        "spec.runPolicy.cleanPodPolicy=Some: expected one of None, Running, All",
    ),
    "deadline of nothing": (
        put("spec", "runPolicy", "activeDeadlineSeconds", 0),
        "spec.runPolicy.activeDeadlineSeconds=0: expected a whole number from 1",
    ),
    "suspended": (put("spec", "runPolicy", "suspend", True), "spec.runPolicy.suspend=true: the operator would start"),
    "unknown success": (
        put("spec", "successPolicy", "AnyWorker"),
        "spec.successPolicy=AnyWorker: expected one of AllWorkers",
    ),
    "tag that YAML takes for a number": (put(*CONTAINER, "image", 3.11), "image=3.11: expected text"),
}


@pytest.mark.parametrize(("change", "words"), REFUSED.values(), ids=REFUSED)
def test_bad_manifest_is_exit_2_and_one_line_that_names_the_field(capsys, tmp_path, change, words):
    path = write(tmp_path / "job.yaml", changed(change))
    assert cli.main(["local-tfjob", str(path)]) == 2
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1
    assert err.startswith(f"mlcore local-tfjob: error: {path}: TFJob")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [", "not YAML"),
        ("- 1", "expected Kubernetes objects"),
        ("kind: Job\nmetadata: {name: j}", "no TFJob in it (it has Job)"),
        ("", "no TFJob in it (it has nothing)"),
        ("kind: TFJob\nmetadata: 3", "metadata=3: expected a mapping"),
    ],
)
def test_file_that_holds_no_job_is_refused(capsys, tmp_path, text, words):
    path = tmp_path / "job.yaml"
    path.write_text(text)
    assert cli.main(["local-tfjob", f"--manifest={path}"]) == 2
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1


def test_missing_file_is_refused(capsys, tmp_path):
    assert cli.main(["local-tfjob", f"--manifest={tmp_path / 'none.yaml'}"]) == 2
    assert "none.yaml: cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("volume", "words"),
    [("data", "expected CLAIM=DIR"), ("data=/not/there", "is not a directory"), ("=x", "expected CLAIM=DIR")],
)
def test_wrong_volume_is_refused(capsys, tmp_path, volume, words):
    path = write(tmp_path / "job.yaml", job_object(Worker=1))
    assert cli.main(["local-tfjob", f"--manifest={path}", f"--volume={volume}"]) == 2
    assert words in capsys.readouterr().err


def test_machine_without_docker_is_told_so(capsys, monkeypatch, tmp_path):
    path = write(tmp_path / "job.yaml", job_object(Worker=1))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert cli.main(["local-tfjob", f"--manifest={path}"]) == 2
    assert "docker is not on the PATH" in capsys.readouterr().err


def test_engine_that_does_not_answer_is_told(capsys, monkeypatch, tmp_path):
    path = write(tmp_path / "job.yaml", job_object(Worker=1))
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    assert cli.main(["local-tfjob", f"--manifest={path}"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "container engine does not answer" in err or "docker is not on the PATH" in err


def test_tool_is_listed_beside_the_steps(capsys):
    assert cli.main(["--help"]) == 0
    _, _, tools = capsys.readouterr().out.partition("\nTools:\n")
    assert tools.startswith("  local-tfjob     Run a TFJob on this machine's container engine")
