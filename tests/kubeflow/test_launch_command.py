"""`mlcore launch` as a process: exit codes, signals, manifests from files, standard input and text."""

import json
import subprocess
import sys
import time

import pytest

from tests.kubeflow.api_server import Fault
from tests.kubeflow.operators import Run, TrainingOperator
from tests.waiting import wait_until

KEY = ("kubeflow.org/tfjobs", "team", "digits")
MANIFEST = """
apiVersion: kubeflow.org/v1
kind: TFJob
metadata: {name: digits}
spec:
  tfReplicaSpecs:
    Worker:
      restartPolicy: Never
      template: {spec: {containers: [{name: tensorflow, image: "mlcore/${image}"}]}}
"""
ARGUMENTS = ("launch", "--set=image=mnist-train", "--namespace=team")


@pytest.fixture
def manifest(tmp_path):
    path = tmp_path / "digits.yaml"
    path.write_text(MANIFEST)
    return path


def phase(api):
    pod = api.store.get(("pods", "team", "digits-worker-0"))
    return ((pod or {}).get("status") or {}).get("phase")


def test_success_is_0_with_results_for_pipelines(api, command, manifest, tmp_path):
    with TrainingOperator(api, {"worker-0": [Run(["2026-11-24T10:00:00Z accuracy=0.97"])]}).working():
        done = command(*ARGUMENTS, f"--manifest={manifest}", f"--output-dir={tmp_path / 'out'}",
                       f"--result-file=metrics={tmp_path / 'metrics'}").wait()  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "2026-11-24T10:00:00Z accuracy=0.97"
    assert "name=digits\n" in done.stdout and "state=Succeeded\n" in done.stdout
    assert json.loads((tmp_path / "metrics").read_text()) == {"accuracy": 0.97}
    outcome = json.loads((tmp_path / "out" / "outcome.json").read_text())
    assert (outcome["state"], outcome["metrics"], outcome["exit_code"]) == ("Succeeded", {"accuracy": 0.97}, 0)


@pytest.mark.slow
@pytest.mark.parametrize(("code", "expected"), [(2, 65), (75, 75)])
def test_failure_is_one_line_and_its_code(api, command, manifest, code, expected):
    with TrainingOperator(api, {"worker-0": [Run(["mlcore mnist-train: error: cut"], code=code)]}).working():
        done = command(*ARGUMENTS, f"--manifest={manifest}").wait()
    assert done.returncode == expected
    assert done.stdout == ""
    last = done.stderr.splitlines()[-1]
    assert last.startswith("mlcore launch: error: TFJob digits: Failed (TFJobFailed: ") and "error: cut" in last


def test_a_server_that_is_not_there_is_waited_for_no_longer_than_allowed(api, command, manifest):
    api.faults.append(Fault(drop="before", times=10000))
    started = time.monotonic()
    launched = command(*ARGUMENTS, f"--manifest={manifest}", "--timeout-s=1")
    deployed = command("deploy", "--model-name=pets", "--storage-uri=pvc://models/pets", "--timeout-s=1")
    for done in (launched.wait(), deployed.wait()):
        assert done.returncode == 75 and "tried for 1 s" in done.stderr.splitlines()[-1]
    assert time.monotonic() - started < 15


@pytest.mark.slow
def test_sigterm_leaves_the_job_and_the_same_command_follows_it(api, command, manifest):
    with TrainingOperator(api, {"worker-0": [Run([f"a={n}" for n in range(15)], pause_s=0.1)]}).working():
        first = command(*ARGUMENTS, f"--manifest={manifest}")
        wait_until(lambda: phase(api) == "Running")
        started = time.monotonic()
        done = first.stop()
        assert time.monotonic() - started < 3
        assert done.returncode == 143
        assert "goes on; the same command follows it" in done.stderr and "stopped by SIGTERM" in done.stderr
        assert api.store.get(KEY)
        done = command(*ARGUMENTS, f"--manifest={manifest}").wait()
        assert done.returncode == 0 and '"a": 14' in done.stdout


@pytest.mark.slow
def test_sigterm_deletes_the_job_on_demand(api, command, manifest):
    with TrainingOperator(api, {}).working():
        started = command(*ARGUMENTS, f"--manifest={manifest}", "--delete-on-stop=true")
        wait_until(lambda: phase(api) == "Running")
        done = started.stop()
    assert done.returncode == 143
    assert "TFJob digits was deleted" in done.stderr
    assert api.store.get(KEY) is None and api.store.list("pods") == []
    assert [request[0] for request in api.requests].count("delete") == 1


@pytest.mark.slow
def test_sigterm_ends_within_ten_seconds_though_the_server_is_silent(api, command, manifest):
    with TrainingOperator(api, {}).working():
        started = command(*ARGUMENTS, f"--manifest={manifest}", "--delete-on-stop=true")
        wait_until(lambda: phase(api) == "Running")
        api.faults.append(Fault(wait_s=60, times=1000))
        time.sleep(0.3)
        began = time.monotonic()
        done = started.stop()
        assert time.monotonic() - began < 10
    assert done.returncode == 143
    assert "could not be deleted" in done.stderr


@pytest.mark.slow
def test_sigterm_while_the_creation_has_no_answer_leaves_no_job(api, command, manifest):
    api.faults.append(Fault("watch", wait_s=60, times=100))
    api.faults.append(Fault("create", "tfjobs", wait_s=1))
    started = command(*ARGUMENTS, f"--manifest={manifest}", "--delete-on-stop=true")
    wait_until(lambda: any(request[0] == "create" for request in api.requests))
    done = started.stop()
    assert done.returncode == 143
    assert [request[0] for request in api.requests].count("delete") == 1
    assert api.store.get(KEY) is None


@pytest.mark.slow
def test_killed_launcher_leaves_a_job_that_the_next_one_follows(api, command, manifest):
    with TrainingOperator(api, {"worker-0": [Run(["a=1", "a=2"], pause_s=0.8)]}).working():
        first = command(*ARGUMENTS, f"--manifest={manifest}")
        wait_until(lambda: phase(api) == "Running")
        first.process.kill()
        done = command(*ARGUMENTS, f"--manifest={manifest}").wait()
    assert done.returncode == 0 and "is there already" in done.stderr and '"a": 2' in done.stdout
    assert [request[0] for request in api.requests].count("create") == 1


def test_manifest_comes_from_standard_input(api, kubeconfig):
    with TrainingOperator(api, {"worker-0": [Run(["a=1"])]}).working():
        done = subprocess.run([sys.executable, "-m", "mlcore", *ARGUMENTS, "--manifest=-"], input=MANIFEST,
                              capture_output=True, text=True, timeout=30)  # fmt: skip
    assert done.returncode == 0, done.stderr
    (container,) = api.store.get(KEY)["spec"]["tfReplicaSpecs"]["Worker"]["template"]["spec"]["containers"]
    assert container["image"] == "mlcore/mnist-train"
