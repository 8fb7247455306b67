"""What members tell each other through the model directory, and when a member's work is over."""

import time

import grpc
import pytest

from mlcore.cluster import watch as watch_module
from mlcore.cluster.config import Member, parse_tf_config
from mlcore.cluster.evaluation import Evaluation, read_evaluation, wait_for_evaluation, write_evaluation
from mlcore.cluster.leaving import announce_leaving, let_go, return_to_work, was_let_go, who_is_leaving
from mlcore.cluster.status import StatusFile, goal_of, read_status
from mlcore.cluster.timeouts import Timeouts
from mlcore.cluster.watch import Watch
from mlcore.runtime.errors import DataError, MlcoreError, RestartError, Stopped

TF_CONFIG = (
    '{"cluster": {"chief": ["127.0.0.1:1"], "worker": ["127.0.0.1:2"], "ps": ["127.0.0.1:3"]}, '
    '"task": {"type": "worker", "index": 0}}'
)


@pytest.fixture
def cluster():
    return parse_tf_config(TF_CONFIG)


def watch(cluster, folder, goal="g", start=100.0, gone=100.0):
    return Watch(cluster, read_status(folder), goal, Timeouts(start_timeout_s=start, chief_timeout_s=gone))


def test_run_that_is_done_ends_the_others(cluster, tmp_path):
    waiting = watch(cluster, tmp_path)
    assert not waiting.is_over(read_status(tmp_path))
    chief = StatusFile(tmp_path, "g")
    chief.say("running")
    assert not waiting.is_over(read_status(tmp_path))
    chief.say("done")
    assert waiting.is_over(read_status(tmp_path))


def test_marker_of_an_earlier_run_ends_nobody(cluster, tmp_path):
    StatusFile(tmp_path, "shorter").say("done")
    waiting = watch(cluster, tmp_path, goal="longer")
    assert not waiting.is_over(read_status(tmp_path))
    StatusFile(tmp_path, "longer").say("done")
    assert waiting.is_over(read_status(tmp_path))


def test_failure_of_an_earlier_run_ends_nobody(cluster, tmp_path):
    StatusFile(tmp_path, "g").say_error(DataError("bad"))
    assert not watch(cluster, tmp_path).is_over(read_status(tmp_path))


def test_member_that_comes_after_its_job_is_done_ends_after_a_grace(cluster, tmp_path, monkeypatch):
    StatusFile(tmp_path, "g").say("done")
    waiting = watch(cluster, tmp_path)
    assert not waiting.is_over(read_status(tmp_path))
    monkeypatch.setattr(watch_module, "_LATE_GRACE_S", 0.0)
    assert waiting.is_over(read_status(tmp_path))
    assert not watch(cluster, tmp_path, goal="another").is_over(read_status(tmp_path))


@pytest.mark.parametrize(
    ("error", "code"), [(DataError("no image"), 65), (ValueError("a bug"), 1)], ids=["bad data", "bug"]
)
def test_failure_for_good_is_everybodys(cluster, tmp_path, error, code):
    waiting = watch(cluster, tmp_path)
    StatusFile(tmp_path, "g").say_error(error)
    with pytest.raises(MlcoreError, match=f"the chief failed: {error}") as caught:
        waiting.is_over(read_status(tmp_path))
    assert caught.value.exit_code == code


@pytest.mark.parametrize("error", [RestartError("ps lost"), Stopped()], ids=["restart", "stopped"])
def test_chief_that_will_be_back_is_waited_for(cluster, tmp_path, error):
    waiting = watch(cluster, tmp_path)
    StatusFile(tmp_path, "g").say_error(error)
    assert not waiting.is_over(read_status(tmp_path))


def test_chief_that_never_comes_means_start_again(cluster, tmp_path, monkeypatch):
    waiting = watch(cluster, tmp_path, start=0.0)
    with pytest.raises(RestartError, match=r"chief 0 \(127.0.0.1:1\) has not answered"):
        waiting.is_over(None)


def test_chief_that_is_gone_means_start_again(tmp_path, monkeypatch):
    monkeypatch.setattr(watch_module, "_PROBE_INTERVAL_S", 0.0)
    server = grpc.server(None)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    cluster = parse_tf_config(TF_CONFIG.replace("127.0.0.1:1", f"127.0.0.1:{port}"))
    waiting = watch(cluster, tmp_path, gone=0.3)
    assert not waiting.is_over(None)
    server.stop(None).wait()
    monkeypatch.setattr(watch_module, "_PROBE_INTERVAL_S", 0.2)
    time.sleep(0.2)
    assert not waiting.is_over(None)
    time.sleep(0.2)
    with pytest.raises(RestartError, match="has not answered"):
        waiting.is_over(None)


def test_goal_is_one_for_a_job_and_differs_between_jobs(cluster):
    evaluator = parse_tf_config(TF_CONFIG.replace('"worker", "index"', '"ps", "index"'))
    assert goal_of(cluster, steps=5) == goal_of(evaluator, steps=5)
    assert goal_of(cluster, steps=5) != goal_of(cluster, steps=6)


def test_half_written_status_is_none(tmp_path):
    StatusFile(tmp_path, "g").say("running")
    (tmp_path / "cluster" / "status.json").write_text('{"run":')
    assert read_status(tmp_path) is None
    (tmp_path / "cluster" / "status.json").write_text('{"more": 1}')
    assert read_status(tmp_path) is None


def test_evaluation_reaches_the_chief(tmp_path):
    assert wait_for_evaluation(tmp_path, 40, 0.0) is None
    write_evaluation(tmp_path, Evaluation(40, {"ap50": 0.5}))
    assert wait_for_evaluation(tmp_path, 40, 5.0) == read_evaluation(tmp_path) == Evaluation(40, {"ap50": 0.5})
    assert wait_for_evaluation(tmp_path, 80, 0.0) is None


def test_leaving_worker_is_let_go_and_may_come_back(tmp_path):
    workers = [Member("worker", 0, "a:1"), Member("worker", 1, "b:1")]
    assert who_is_leaving(tmp_path, workers) == []
    announce_leaving(tmp_path, workers[1])
    assert who_is_leaving(tmp_path, workers) == [workers[1]]
    assert not was_let_go(tmp_path, workers[1])
    let_go(tmp_path, workers[1])
    assert was_let_go(tmp_path, workers[1])
    announce_leaving(tmp_path, workers[1])
    return_to_work(tmp_path, workers[1])
    assert who_is_leaving(tmp_path, workers) == []
