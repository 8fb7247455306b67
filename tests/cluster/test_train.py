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
    with LocalCluster(tmp_path / "logs", [*command, "--steps=120", "--eval-interval=60"]) as cluster:
        cluster.start()
        cluster.wait_for_log("chief-0", r"saved \S+ckpt-\d+", 240)
        assert re.search(r"resuming from \S+ckpt-15", cluster.log("chief-0"))
        # A worker goes and comes back, and so does the chief.
        cluster.kill("worker-1")
        cluster.start("worker-1")
        cluster.wait_for_log("chief-0", r"saved \S+ckpt-\d+.*saved \S+ckpt-\d+", 240)
        cluster.send("chief-0", signal.SIGTERM)
        assert cluster.wait("chief-0", 30) == 143, cluster.logs()
        cluster.start("chief-0")
        assert set(cluster.wait_all(300).values()) == {0}, cluster.logs()
        log = cluster.log("chief-0")
        assert all(int(steps) > 0 for steps in re.findall(r"'worker \d': (\d+)", log))
        assert re.search(r"ap50=[\d.]+$", cluster.log("evaluator-0"), re.M)
    success = json.loads((tmp_path / "model" / "_SUCCESS.json").read_text())
    assert success["results"]["steps"] >= 120
    assert success["results"]["best_step"] > 0
    first = float(re.search(r" loss=([\d.]+)$", one.stdout, re.M)[1])
    assert success["results"]["loss"] < first
    steps = success["results"]["steps"] + 10
    back = subprocess.run(
        [*command, f"--steps={steps}", "--eval-interval=0"], capture_output=True, text=True, check=False
    )
    assert back.returncode == 0, back.stderr
    assert f"resuming from {tmp_path / 'model' / 'ckpt-'}{success['results']['steps']}" in back.stderr
