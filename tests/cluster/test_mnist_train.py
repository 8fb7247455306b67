"""`mlcore mnist-train` on a cluster of real processes, on real MNIST."""

import json
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from processes import LocalCluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def flags(shared_data, tmp_path):
    """A training of constant rate, so that a longer one begins as a shorter one does.

    The rate is low: at 0.001 the loss of one cluster differs from that of the next by 4 % (standard deviation of
    twelve), at 0.0003 by 1 %, and the tests compare losses.
    """
    return [
        sys.executable, "-m", "mlcore", "mnist-train", f"--data-dir={shared_data / 'mnist'}",
        f"--model-dir={tmp_path / 'model'}", "--learning-rate=0.0003", "--learning-rate-schedule=constant",
        "--evaluation-timeout-s=60", "--start-timeout-s=120",
    ]  # fmt: skip


def last(name, text):
    return float(re.findall(rf" {name}=([\d.]+)$", text, re.M)[-1])


def on_one_machine(flags, *more):
    done = subprocess.run([*flags, *more], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_run_goes_on_from_one_machine_to_a_cluster_and_back(flags, tmp_path):
    on_one_machine(flags, "--steps=300")
    with LocalCluster(tmp_path / "logs", [*flags, "--steps=900", f"--export-dir={tmp_path / 'models'}"]) as cluster:
        cluster.start()
        assert set(cluster.wait_all(240).values()) == {0}, cluster.logs()
        log = cluster.log("chief-0")
        assert re.search(r"going on from \S+ckpt-300", log)
        shares = [int(number) for number in re.findall(r"'worker \d': (\d+)", log)]
        assert sum(shares) >= 600
        assert min(shares) >= 0.25 * sum(shares)
        assert "step 900: validation loss" in cluster.log("evaluator-0")
        assert (tmp_path / "models" / "1" / "saved_model.pb").exists()
        whole = on_one_machine([*flags, f"--model-dir={tmp_path / 'whole'}"], "--steps=900")
        assert last("loss", log) == pytest.approx(last("loss", whole), rel=0.10)
        assert last("accuracy", log) == pytest.approx(last("accuracy", whole), abs=0.01)
        # The same job again: the chief finds nothing to do, and the others end with it.
        cluster.start()
        assert set(cluster.wait_all(60).values()) == {0}, cluster.logs()
        assert "is up to date" in cluster.log("chief-0")
    back = on_one_machine(flags, "--steps=1000")
    assert re.search(r"going on from \S+ckpt-900", back)
    assert json.loads((tmp_path / "model" / "_SUCCESS.json").read_text())["results"]["steps"] == 1000


def test_large_variable_is_cut_over_the_parameter_servers_and_whole_in_checkpoints(tmp_path):
    program = Path(__file__).with_name("cut_variable.py")
    done = subprocess.run([sys.executable, program, tmp_path], capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr
    *_, second, first = sorted(json.loads(done.stdout.splitlines()[-1]))
    assert second > 0.9 * first > 6_000_000  # half of the weights and of the optimiser's slots on each


def test_full_disk_is_a_clear_error_and_the_last_checkpoint_stays(flags, tmp_path):
    command = [*flags, "--steps=100000", "--checkpoint-interval-s=1"]
    with LocalCluster(tmp_path / "logs", command, workers=1, ps=1, evaluator=False) as cluster:
        cluster.start()
        cluster.wait_for_log("chief-0", r"step \d+ of 100000.*step \d+ of 100000.*step \d+ of 100000")
        # What the parameter server writes from now on ends like on a full disk.
        resource.prlimit(cluster.processes["ps-0"].pid, resource.RLIMIT_FSIZE, (10_000, 10_000))
        assert cluster.wait("chief-0", 120) == 2, cluster.logs()
        words = rf"--model-dir={tmp_path / 'model'}: the checkpoint of step \d+ cannot be written"
        assert re.search(words, cluster.log("chief-0"))
        assert set(cluster.wait_all(20).values()) == {2}
    steps = [int(path.stem.rpartition("-")[2]) for path in (tmp_path / "model").glob("ckpt-*.index")]
    log = on_one_machine(flags, f"--steps={max(steps) + 100}")
    assert re.search(rf"going on from \S+ckpt-{max(steps)}\b", log)
