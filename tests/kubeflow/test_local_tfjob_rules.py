"""What the operator and the kubelet decide, as local-tfjob does it."""

import dataclasses

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mlcore.kubeflow.local.rules import (
    Replica,
    container_restarts,
    exceeded,
    is_deleted,
    is_recreated,
    restart_delay_s,
    verdict,
)
from mlcore.kubeflow.local.tfjob import CLEAN_POD_POLICIES, RESTART_POLICIES, TYPES
from tests.kubeflow.jobs import job, template

PHASES = ("Pending", "Running", "Succeeded", "Failed")


def replicas(*described):
    """`replicas("Worker 0 Failed 1")`."""
    made = []
    for text in described:
        kind, index, phase, *code = text.split()
        made.append(Replica(kind, int(index), phase, int(code[0]) if code else 0 if phase == "Succeeded" else None))
    return made


@pytest.mark.parametrize("code", [128, 130, 137, 138, 143, 255])
def test_exit_code_from_128_makes_the_pod_again(code):
    assert is_recreated("ExitCode", Replica("Worker", 0, "Failed", code))


@pytest.mark.parametrize("code", [1, 2, 65, 75, 127])
def test_exit_code_below_128_fails_the_job(code):
    failed = Replica("Worker", 0, "Failed", code)
    assert not is_recreated("ExitCode", failed)
    outcome = verdict(job(Chief=1, Worker=1), [Replica("Chief", 0, "Running"), failed])
    assert (outcome.state, outcome.message) == (
        "Failed", f"1 Worker replica(s) failed: myjob-worker-0 ended with {code}",
    )  # fmt: skip


def test_pod_whose_container_never_ran_is_made_again():
    assert is_recreated("ExitCode", Replica("Worker", 0, "Failed", None))
    assert not is_recreated("Never", Replica("Worker", 0, "Failed", None))


@given(st.sampled_from(RESTART_POLICIES), st.sampled_from(PHASES), st.integers(0, 255))
def test_only_a_failed_pod_under_exit_code_is_made_again(policy, phase, code):
    again = is_recreated(policy, Replica("PS", 0, phase, code))
    assert again == (policy == "ExitCode" and phase == "Failed" and code >= 128)


@pytest.mark.parametrize(
    ("policy", "code", "restarted"),
    [
        ("Always", 0, True), ("Always", 1, True), ("OnFailure", 0, False), ("OnFailure", 1, True),
        ("OnFailure", 137, True), ("Never", 1, False), ("ExitCode", 137, False), ("ExitCode", 0, False),
    ],
)  # fmt: skip
def test_kubelet_restarts_in_place(policy, code, restarted):
    assert container_restarts(policy, code) is restarted


def test_kubelet_waits_longer_each_time():
    assert [restart_delay_s(count) for count in range(8)] == [0, 10, 20, 40, 80, 160, 300, 300]
    assert restart_delay_s(10_000) == 300


SUCCESS = {
    "the chief, whatever the workers do": (
        {"Chief": 1, "Worker": 2}, ("Chief 0 Succeeded", "Worker 0 Running", "Worker 1 Running"), "the chief completed",
    ),
    "the master": ({"Master": 1, "Worker": 1}, ("Master 0 Succeeded", "Worker 0 Running"), "the master completed"),
    "the chief before a worker that failed": (
        {"Chief": 1, "Worker": 1}, ("Chief 0 Succeeded", "Worker 0 Failed 1"), "the chief completed",
    ),
    "worker 0 without a chief": (
        {"PS": 1, "Worker": 2}, ("PS 0 Running", "Worker 0 Succeeded", "Worker 1 Running"), "worker 0 completed",
    ),
    "all workers": (
        {"Worker": 2, "successPolicy": "AllWorkers"}, ("Worker 0 Succeeded", "Worker 1 Succeeded"), "all workers",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("shape", "described", "words"), SUCCESS.values(), ids=SUCCESS)
def test_job_succeeds_by(shape, described, words):
    outcome = verdict(job(**shape), replicas(*described))
    assert outcome.state == "Succeeded" and outcome.message.startswith(words)


UNDECIDED = {
    "workers are through, the chief is not": ({"Chief": 1, "Worker": 1}, ("Chief 0 Running", "Worker 0 Succeeded")),
    "worker 1 is through, worker 0 is not": ({"Worker": 2}, ("Worker 0 Running", "Worker 1 Succeeded")),
    "all workers are wanted": (
        {"Worker": 2, "successPolicy": "AllWorkers"}, ("Worker 0 Succeeded", "Worker 1 Running"),
    ),
    "a dynamic worker failed": (
        {"Chief": 1, "Worker": 2, "enableDynamicWorker": True},
        ("Chief 0 Running", "Worker 0 Failed 1", "Worker 1 Running"),
    ),
    "the ps completed": ({"PS": 1, "Worker": 1}, ("PS 0 Succeeded", "Worker 0 Running")),
}  # fmt: skip


@pytest.mark.parametrize(("shape", "described"), UNDECIDED.values(), ids=UNDECIDED)
def test_job_goes_on_while(shape, described):
    assert verdict(job(**shape), replicas(*described)) is None


@pytest.mark.parametrize("kind", ["Chief", "PS", "Evaluator", "Worker"])
def test_any_failed_replica_fails_the_job(kind):
    shape = job(Chief=1, Worker=1, PS=1, Evaluator=1)
    states = [Replica(each, 0, "Failed" if each == kind else "Running", 1) for each in shape.replica_specs]
    assert verdict(shape, states).state == "Failed"


@given(st.data())
def test_verdict_does_not_depend_on_the_order_of_pods_and_is_kept_by_more_success(data):
    counts = {kind: data.draw(st.integers(0, 3), kind) for kind in TYPES if kind != "Master"}
    counts["Chief"] = min(counts["Chief"], 1)
    assume(any(counts.values()))
    shape = job(successPolicy=data.draw(st.sampled_from(["", "AllWorkers"])),
                **{kind: count for kind, count in counts.items() if count})  # fmt: skip
    states = [
        Replica(kind, index, phase, {"Succeeded": 0, "Failed": 1}.get(phase))
        for kind, count in counts.items()
        for index, phase in enumerate(data.draw(st.lists(st.sampled_from(PHASES), min_size=count, max_size=count)))
    ]
    outcome = verdict(shape, states)
    shuffled = verdict(shape, data.draw(st.permutations(states)))
    assert (outcome and outcome.state) == (shuffled and shuffled.state)
    done = [dataclasses.replace(state, phase="Succeeded", exit_code=0) for state in states]
    leads = "Chief" if counts["Chief"] else "Worker"
    if counts[leads]:
        assert verdict(shape, done).state == "Succeeded"
    else:  # nobody whose end is the job's
        assert verdict(shape, done) is None


def test_deadline_ends_the_job():
    bounded = job(Worker=1, runPolicy={"activeDeadlineSeconds": 5})
    assert exceeded(bounded, replicas("Worker 0 Running"), 4.9) is None
    outcome = exceeded(bounded, replicas("Worker 0 Running"), 5.0)
    assert outcome.state == "DeadlineExceeded" and outcome.by_limit


def limited(policy, limit):
    return job(Worker={"template": template(), "restartPolicy": policy}, runPolicy={"backoffLimit": limit})


def test_backoff_limit_counts_restarts_in_place():
    running = Replica("Worker", 0, "Running", container_restarts=2)
    assert exceeded(limited("OnFailure", 3), [running], 1) is None
    assert exceeded(limited("OnFailure", 2), [running], 1).state == "Failed"
    assert exceeded(limited("Always", 0), [running], 1).by_limit
    assert exceeded(limited("OnFailure", 0), [dataclasses.replace(running, container_restarts=0)], 1) is None


def test_backoff_limit_does_not_bound_pods_that_are_made_again():
    # Seen with the operator: 28 restarts with backoffLimit 2.
    assert exceeded(limited("ExitCode", 2), [Replica("Worker", 0, "Failed", 138, 28)], 1) is None


def test_backoff_limit_of_0_allows_no_failed_pod():
    assert exceeded(limited("ExitCode", 0), [Replica("Worker", 0, "Failed", 138)], 1).state == "Failed"


@given(st.sampled_from(CLEAN_POD_POLICIES), st.sampled_from(PHASES))
def test_clean_up_follows_the_policy(policy, phase):
    wanted = {"None": False, "Running": phase in ("Pending", "Running"), "All": True}[policy]
    assert is_deleted(policy, phase) is wanted
