"""Members that train in step (MultiWorkerMirroredStrategy), and a chief alone with an evaluator: real processes."""

import json
import re
import signal
import subprocess
import sys
import time

import pytest
from processes import LocalCluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

TEAM = {"workers": 2, "ps": 0, "chief": False, "evaluator": False}


@pytest.fixture
def mnist(shared_data, tmp_path):
    return [
        sys.executable, "-m", "mlcore", "mnist-train", f"--data-dir={shared_data / 'mnist'}",
        f"--model-dir={tmp_path / 'model'}", "--learning-rate-schedule=constant", "--checkpoint-interval-s=1",
        "--start-timeout-s=60",
    ]  # fmt: skip


@pytest.fixture
def detection(records, tmp_path):
    return [
        sys.executable, "-m", "mlcore", "train", f"--data-dir={records}", f"--model-dir={tmp_path / 'model'}",
        "--image-size=64x96", "--schedule=constant", "--start-timeout-s=120",
    ]  # fmt: skip


def results(tmp_path):
    return json.loads((tmp_path / "model" / "_SUCCESS.json").read_text())["results"]


def alone(command):
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def loss_at(step, text):
    """The loss of training that was printed for a step (MNIST: logged)."""
    return float(re.search(rf"step {step} of \d+ \(epoch [\d.]+\): loss ([\d.]+)", text)[1])


def test_mnist_makes_the_steps_of_one_machine_and_goes_on_there(mnist, tmp_path):
    roles = {"workers": 1, "ps": 0, "chief": True, "evaluator": True}
    with LocalCluster(tmp_path / "logs", [*mnist, "--steps=400"], **roles) as cluster:
        cluster.start()
        assert set(cluster.wait_all(120).values()) == {0}, cluster.logs()
        log = cluster.log("chief-0")
        assert "step 400: validation loss" in cluster.log("evaluator-0")
        assert "loss=" not in cluster.log("worker-0")
        # The same job again: the chief finds nothing to do, and the other ends with it.
        cluster.start()
        assert set(cluster.wait_all(60).values()) == {0}, cluster.logs()
        assert "is up to date" in cluster.log("chief-0")
    whole = alone([*mnist, f"--model-dir={tmp_path / 'whole'}", "--steps=400"])
    for step in (40, 200, 400):  # the same batches: only the order of additions differs
        assert loss_at(step, log) == pytest.approx(loss_at(step, whole), rel=0.02)
    assert re.search(r"going on from \S+ckpt-400", alone([*mnist, "--steps=420"]))


def test_killed_member_ends_the_others_with_138_and_all_resume(mnist, tmp_path):
    with LocalCluster(tmp_path / "logs", [*mnist, "--steps=1500"], **TEAM) as cluster:
        cluster.start()
        cluster.wait_for_log("worker-0", r"step \d+ of 1500.*step \d+ of 1500.*step \d+ of 1500")
        cluster.kill("worker-0")  # it leads; the next test has the other
        assert cluster.wait("worker-1", 30) == 138, cluster.logs()
        assert re.search(r"broken up|is lost", cluster.log("worker-1"))
        last = max(int(path.stem.rpartition("-")[2]) for path in (tmp_path / "model").glob("ckpt-*.index"))
        cluster.start()
        assert set(cluster.wait_all(120).values()) == {0}, cluster.logs()
        assert re.search(rf"going on from \S+ckpt-{last}\b", cluster.log("worker-0"))
    assert results(tmp_path)["steps"] == 1500


def test_stopped_member_ends_the_others_with_138(mnist, tmp_path):
    with LocalCluster(tmp_path / "logs", [*mnist, "--steps=100000", "--stall-timeout-s=5"], **TEAM) as cluster:
        cluster.start()
        cluster.wait_for_log("worker-0", r"step \d+ of 100000")
        cluster.send("worker-1", signal.SIGSTOP)
        assert cluster.wait("worker-0", 60) == 138, cluster.logs()


@pytest.mark.parametrize("asked", ["worker-0", "worker-1"])
def test_sigterm_to_any_member_stops_all_after_the_same_step(mnist, tmp_path, asked):
    with LocalCluster(tmp_path / "logs", [*mnist, "--steps=100000", "--checkpoint-interval-s=600"], **TEAM) as cluster:
        cluster.start()
        cluster.wait_for_log("worker-0", r"step \d+ of 100000|mnist-train: \d+ of", 60)
        cluster.send(asked, signal.SIGTERM)
        began = time.monotonic()
        assert set(cluster.wait_all(30).values()) == {143}, cluster.logs()
        assert time.monotonic() - began < 10
        (saved,) = re.findall(r"stopped after step (\d+) of", cluster.log("worker-0"))
    assert (tmp_path / "model" / f"ckpt-{saved}.index").exists()


def test_lone_worker_ends_with_138_after_the_bound(mnist, tmp_path):
    with LocalCluster(tmp_path / "logs", [*mnist, "--start-timeout-s=3"], **TEAM) as cluster:
        cluster.start("worker-0")
        assert cluster.wait("worker-0", 60) == 138
        assert "worker 1 (127.0.0.1:" in cluster.log("worker-0")


def test_detection_in_step_outlives_a_kill_and_a_stop_and_a_chief_with_an_evaluator_goes_on(detection, tmp_path):
    command = [*detection, "--steps=60", "--checkpoint-interval=15", "--eval-interval=20"]
    with LocalCluster(tmp_path / "logs", command, **TEAM) as cluster:
        cluster.start()
        cluster.wait_for_log("worker-0", r"saved \S+ckpt-15", 150)
        cluster.kill("worker-1")
        killed = time.monotonic()
        assert cluster.wait("worker-0", 30) == 138, cluster.logs()
        assert time.monotonic() - killed < 30
        assert "worker 1 (127.0.0.1:" in cluster.log("worker-0")
        seen = len(cluster.log("worker-0"))
        last = max(int(path.stem.rpartition("-")[2]) for path in (tmp_path / "model").glob("ckpt-*.index"))
        cluster.start()
        cluster.wait_for_log("worker-0", rf"resuming from \S+ckpt-{last}\b.*saved \S+ckpt-30", 150, after=seen)
        # There is no evaluation after this step: during one the member would leave alone, and the rest end with 138.
        cluster.send("worker-1", signal.SIGTERM)
        assert set(cluster.wait_all(60).values()) == {143}, cluster.logs()
        (stopped,) = re.findall(r"stopped after step (\d+)", cluster.log("worker-0"))
        assert "ap50=" in cluster.log("worker-0")
        assert "ap50=" not in cluster.log("worker-1")
    with LocalCluster(tmp_path / "logs", command, workers=0, ps=0) as cluster:
        cluster.start()
        assert set(cluster.wait_all(150).values()) == {0}, cluster.logs()
        assert re.search(rf"resuming from \S+ckpt-{stopped}\b", cluster.log("chief-0"))
        assert "ap50=" in cluster.log("evaluator-0")
    assert results(tmp_path)["steps"] == 60
    assert results(tmp_path)["best_step"] > 0
