"""What happens to a training cluster when its members are killed, stopped or asked to end: real processes, kill -9."""

import json
import re
import signal
import time

import pytest

from mlcore.cluster.evaluation import read_evaluation
from mlcore.cluster.status import read_status

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

ENDED_WELL = {"chief-0": 0, "worker-0": 0, "worker-1": 0, "ps-0": 0, "ps-1": 0, "evaluator-0": 0}
# About 20 ms a step, so that faults fall into the middle of the run.
SLOW = ("--work=60", "--checkpoint-every=40")


def saved_steps(cluster, after=0):
    return [int(step) for step in re.findall(r"saved step (\d+)", cluster.log("chief-0")[after:])]


def final_loss(cluster):
    return float(re.findall(r"^loss=([\d.]+)", cluster.log("chief-0"), re.M)[-1])


def shares(text):
    return json.loads(re.findall(r"shares (\{.*\})", text)[-1].replace("'", '"'))


def test_cluster_trains_and_every_member_ends_with_0_soon_after_the_chief(small_cluster, tmp_path):
    cluster = small_cluster("--steps=160", "--checkpoint-every=40")
    cluster.start()
    assert cluster.wait("chief-0") == 0
    done = time.monotonic()
    assert cluster.wait_all(15) == ENDED_WELL
    assert time.monotonic() - done < 15
    assert saved_steps(cluster) == [40, 80, 120, 160]
    assert final_loss(cluster) < 0.01
    assert read_evaluation(tmp_path / "model").metrics["error"] < 0.05
    # The same job again: nothing is left to do, and a longer one is not fooled by the marker of this one.
    cluster.start(extra=["--steps=240"])
    assert cluster.wait_all(90) == ENDED_WELL
    assert "resumed at step 160" in cluster.log("chief-0")
    assert saved_steps(cluster)[-1] == 240


def test_killed_worker_is_done_without_and_rejoins(small_cluster):
    cluster = small_cluster("--steps=1000", *SLOW)
    cluster.start()
    cluster.wait_for_log("chief-0", "saved step 80")
    cluster.kill("worker-1")
    cluster.kill("evaluator-0")
    killed_at = len(cluster.log("chief-0"))
    before = shares(cluster.log("chief-0"))
    cluster.wait_for_log("chief-0", r"saved step \d+\D.*saved step \d+", after=killed_at)
    meanwhile = shares(cluster.log("chief-0"))
    assert meanwhile["worker 1"] <= before["worker 1"] + 40
    assert meanwhile["worker 0"] > before["worker 0"]
    cluster.start("worker-1", "evaluator-0")
    assert cluster.wait_all(150) == ENDED_WELL
    after = shares(cluster.log("chief-0"))
    assert after["worker 1"] >= meanwhile["worker 1"] + 100
    assert saved_steps(cluster)[-1] >= 1000
    assert final_loss(cluster) < 0.01


def test_stopped_worker_is_named_and_left_out(small_cluster):
    cluster = small_cluster("--steps=400", *SLOW)
    cluster.start()
    cluster.wait_for_log("chief-0", "saved step 80")
    cluster.send("worker-1", signal.SIGSTOP)
    match = cluster.wait_for_log("chief-0", r"worker 1 \(127\.0\.0\.1:\d+\): it does not answer", 40)
    assert "going on without it" in cluster.log("chief-0")[match.start() :]
    assert cluster.wait("chief-0") == 0
    assert saved_steps(cluster)[-1] >= 400
    assert final_loss(cluster) < 0.01
    cluster.send("worker-1", signal.SIGCONT)
    assert cluster.wait_all(30) == ENDED_WELL


def test_worker_that_was_stopped_for_a_while_works_again(small_cluster):
    cluster = small_cluster("--steps=500", *SLOW, evaluator=False, ps=1)
    cluster.start()
    cluster.wait_for_log("chief-0", "saved step 40")
    cluster.send("worker-1", signal.SIGSTOP)
    cluster.wait_for_log("chief-0", "going on without it", 40)
    before = shares(cluster.log("chief-0"))
    cluster.send("worker-1", signal.SIGCONT)
    assert set(cluster.wait_all(90).values()) == {0}
    assert shares(cluster.log("chief-0"))["worker 1"] > before["worker 1"] + 20


def test_killed_ps_ends_the_chief_with_138_and_all_resume(small_cluster, tmp_path):
    cluster = small_cluster("--steps=300", *SLOW)
    cluster.start()
    cluster.wait_for_log("chief-0", "saved step 80")
    cluster.kill("ps-1")
    killed = time.monotonic()
    assert cluster.wait("chief-0", 30) == 138
    assert time.monotonic() - killed < 30
    assert "ps 1 (127.0.0.1:" in cluster.log("chief-0")
    assert read_status(tmp_path / "model").state == "restarting"
    last = saved_steps(cluster)[-1]
    cluster.start("ps-1", "chief-0")
    assert cluster.wait_all(120) == ENDED_WELL
    assert f"resumed at step {last}" in cluster.log("chief-0")
    assert final_loss(cluster) < 0.01


def test_stopped_ps_ends_the_chief_with_138(small_cluster):
    cluster = small_cluster("--steps=300", *SLOW, evaluator=False)
    cluster.start()
    cluster.wait_for_log("chief-0", "saved step 80")
    cluster.send("ps-0", signal.SIGSTOP)
    assert cluster.wait("chief-0", 60) == 138
    assert "ps 0 (127.0.0.1:" in cluster.log("chief-0")


def test_killed_chief_resumes_with_the_servers_that_stayed(small_cluster):
    cluster = small_cluster("--steps=300", *SLOW)
    cluster.start()
    cluster.wait_for_log("chief-0", "saved step 80")
    cluster.kill("chief-0")
    last = saved_steps(cluster)[-1]
    cluster.start("chief-0")
    assert cluster.wait_all(120) == ENDED_WELL
    assert f"resumed at step {last}" in cluster.log("chief-0")
    assert final_loss(cluster) < 0.01


def test_members_end_with_138_when_the_chief_stays_away(small_cluster):
    cluster = small_cluster("--steps=300", "--gone=8", *SLOW, workers=1, ps=1)
    cluster.start()
    cluster.wait_for_log("chief-0", "saved step 40")
    for name in ("worker-0", "ps-0", "evaluator-0"):
        cluster.wait_for_log(name, "the chief is there", 30)
    cluster.kill("chief-0")
    codes = cluster.wait_all(40)
    assert {name: code for name, code in codes.items() if name != "chief-0"} == {
        "worker-0": 138, "ps-0": 138, "evaluator-0": 138,
    }  # fmt: skip


def test_chief_on_sigterm_saves_and_ends_with_143_then_resumes(small_cluster, tmp_path):
    cluster = small_cluster("--steps=300", "--work=60", "--checkpoint-every=1000", evaluator=False)
    cluster.start()
    cluster.wait_for_log("chief-0", "the cluster is complete")
    time.sleep(4)
    cluster.send("chief-0", signal.SIGTERM)
    asked = time.monotonic()
    assert cluster.wait("chief-0", 15) == 143
    assert time.monotonic() - asked < 10
    (step,) = saved_steps(cluster)
    assert 0 < step < 300
    assert read_status(tmp_path / "model").state == "stopped"
    cluster.start("chief-0")
    assert set(cluster.wait_all(120).values()) == {0}
    assert f"resumed at step {step}" in cluster.log("chief-0")


def test_worker_on_sigterm_drains_and_ends_with_143(small_cluster):
    cluster = small_cluster("--steps=800", *SLOW, evaluator=False)
    cluster.start()
    cluster.wait_for_log("chief-0", "saved step 80")
    cluster.send("worker-0", signal.SIGTERM)
    assert cluster.wait("worker-0", 10) == 143
    assert "worker 0 (127.0.0.1:" in cluster.log("chief-0")
    assert "drained" in cluster.log("worker-0")
    left = shares(cluster.log("chief-0"))
    cluster.start("worker-0")
    assert set(cluster.wait_all(150).values()) == {0}
    assert saved_steps(cluster)[-1] == 800  # no closure was cut, so none was made twice
    assert shares(cluster.log("chief-0"))["worker 0"] > left["worker 0"] + 50


def test_slow_worker_does_not_slow_the_others(small_cluster):
    cluster = small_cluster("--steps=600", *SLOW, evaluator=False, ps=1)
    cluster.start()
    cluster.wait_for_log("chief-0", "saved step 40")
    while cluster.processes["chief-0"].poll() is None:  # runs for a seventh of the time
        cluster.send("worker-1", signal.SIGSTOP)
        time.sleep(0.3)
        cluster.send("worker-1", signal.SIGCONT)
        time.sleep(0.05)
    assert set(cluster.wait_all(20).values()) == {0}
    assert "going on without" not in cluster.log("chief-0")
    done = shares(cluster.log("chief-0"))
    assert done["worker 0"] > 2 * done["worker 1"] > 0
