"""The init container that waits: its own script, run by sh as the pod runs it."""

import subprocess
import time

import pytest

from tests.manifests.conftest import rendered, with_runtime
from tests.manifests.rendering import environment, find, workloads


def wait_containers():
    for overlay in ("pets", "mnist", "katib-mnist", "katib-mnist-tfjob", "katib-pets", "trainer-mnist"):
        for workload in workloads(with_runtime(overlay)):
            if workload.wait is not None:
                yield workload.wait


def scripts():
    return {(container["args"][0], "WAIT_FOR" in environment(container)) for container in wait_containers()}


def run(script, by_variables, pattern, seconds):
    arguments = [] if by_variables else [pattern, str(seconds)]
    variables = {"PATH": "/usr/bin:/bin", "WAIT_FOR": pattern, "WAIT_S": str(seconds)} if by_variables else None
    return subprocess.Popen(["sh", "-c", script, *arguments], env=variables, stderr=subprocess.PIPE, text=True)


@pytest.fixture(params=sorted(scripts()), ids=lambda entry: "by variables" if entry[1] else "by arguments")
def wait(request):
    """Starts a script."""
    return lambda pattern, seconds: run(*request.param, pattern, seconds)


def test_there_is_one_script_for_all_pods():
    assert len(scripts()) == 2


def test_what_is_there_is_not_waited_for(wait, tmp_path):
    (tmp_path / "3f2a" / "train").mkdir(parents=True)
    (tmp_path / "3f2a" / "train" / "imgs.npz").touch()
    assert wait(f"{tmp_path}/*/train/imgs.npz", 0).wait(timeout=10) == 0


def test_what_does_not_come_is_a_failure_that_may_pass(wait, tmp_path):
    process = wait(f"{tmp_path}/_SUCCESS.json", 0)
    assert process.wait(timeout=10) == 75
    assert "_SUCCESS.json is not there after 0 s" in process.stderr.read()


@pytest.mark.slow
def test_what_comes_later_is_waited_for(wait, tmp_path):
    process = wait(f"{tmp_path}/_SUCCESS.json", 60)
    time.sleep(1)
    assert process.poll() is None
    (tmp_path / "_SUCCESS.json").touch()
    assert process.wait(timeout=15) == 0


def test_kubernetes_leaves_the_script_as_it_is():
    """`$(NAME)` in arguments is a variable to Kubernetes, if a container has one of the name."""
    for container in wait_containers():
        names = {entry["name"] for entry in container.get("env", [])}
        assert not any(f"$({name})" in argument for name in names for argument in container["args"])


def test_the_last_wait_of_the_tutorial_is_for_the_exported_model():
    predict = find(rendered("pets"), "Job", "pets-predict")["spec"]["template"]["spec"]
    assert predict["initContainers"][0]["args"][1] == "/data/pets/exported/*/saved_model.pb"
