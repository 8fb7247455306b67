"""`mlcore train` (detection) on a cluster of real processes, on BCCD."""

import json
import re
import signal
import subprocess
import sys

import pytest
from processes import LocalCluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_run_goes_on_from_one_machine_to_a_cluster_and_back(records, tmp_path):
    command = [
        sys.executable, "-m", "mlcore", "train", f"--data-dir={records}", f"--model-dir={tmp_path / 'model'}",
        "--image-size=64x96", "--checkpoint-interval=15", "--schedule=constant", "--keep-checkpoints=20",
    ]  # fmt: skip
    one = subprocess.run([*command, "--steps=15", "--eval-interval=0"], capture_output=True, text=True, check=False)
    assert one.returncode == 0, one.stderr
    with LocalCluster(tmp_path / "logs", [*command, "--steps=150", "--eval-interval=75"]) as cluster:
        cluster.start()
        cluster.wait_for_log("chief-0", r"saved \S+ckpt-\d+", 240)
        assert re.search(r"resuming from \S+ckpt-15", cluster.log("chief-0"))
        # A worker goes and comes back, and so does the chief (1 chief, 2 workers, 2 ps, 1 evaluator).
        cluster.kill("worker-1")
        cluster.start("worker-1")
        cluster.wait_for_log("chief-0", r"saved \S+ckpt-\d+.*saved \S+ckpt-\d+", 240)
        cluster.send("chief-0", signal.SIGTERM)
        assert cluster.wait("chief-0", 30) == 143, cluster.logs()
        # A parameter server is lost, and with it the chief until it is started again.
        seen = len(cluster.log("chief-0"))
        cluster.start("chief-0")
        cluster.wait_for_log("chief-0", r"saved \S+ckpt-\d+", 240, after=seen)
        cluster.kill("ps-1")
        assert cluster.wait("chief-0", 30) == 138, cluster.logs()
        newest = max(int(path.stem.rpartition("-")[2]) for path in (tmp_path / "model").glob("ckpt-*.index"))
        seen = len(cluster.log("chief-0"))
        cluster.start("ps-1", "chief-0")
        cluster.wait_for_log("chief-0", rf"resuming from \S+ckpt-{newest}\b", 240, after=seen)
        assert set(cluster.wait_all(300).values()) == {0}, cluster.logs()
        log = cluster.log("chief-0")
        assert all(int(steps) > 0 for steps in re.findall(r"'worker \d': (\d+)", log))
        assert re.search(r"ap50=[\d.]+$", cluster.log("evaluator-0"), re.M)
    success = json.loads((tmp_path / "model" / "_SUCCESS.json").read_text())
    assert success["results"]["steps"] >= 150
    assert success["results"]["best_step"] > 0
    first = float(re.search(r" loss=([\d.]+)$", one.stdout, re.M)[1])
    assert success["results"]["loss"] < first
    steps = success["results"]["steps"] + 10
    back = subprocess.run(
        [*command, f"--steps={steps}", "--eval-interval=0"], capture_output=True, text=True, check=False
    )
    assert back.returncode == 0, back.stderr
    assert f"resuming from {tmp_path / 'model' / 'ckpt-'}{success['results']['steps']}" in back.stderr
