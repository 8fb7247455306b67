"""A log over connections that break: each line once, in its order, whatever the lines and their times are."""

import time

import pytest

from mlcore.kubeflow.cluster import Timing, connect
from mlcore.kubeflow.job_pods import Pods
from mlcore.kubeflow.pod_logs import PodLog
from tests.kubeflow.api_server import Fault
from tests.waiting import wait_until

QUICK = Timing(backoff_s=0.02, backoff_max_s=0.05, log_poll_s=0.02, outage_s=5)
KEY = ("pods", "team", "chief")


def put_pod(api, phase):
    state = {"running": {}} if phase == "Running" else {"terminated": {"exitCode": 0}}

    def change(pod):
        pod["status"] = {"phase": phase, "containerStatuses": [{"name": "c", "state": state, "restartCount": 0}]}

    if api.store.get(KEY) is None:
        api.store.create(KEY, {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "chief"},
                               "spec": {"containers": [{"name": "c"}]}})  # fmt: skip
    api.store.replace(KEY, change)
    return api.store.get(KEY)


def write(api, pod, *lines):
    with api.store.changed:
        api.store.logs.setdefault(("team", "chief", pod["metadata"]["uid"]), []).extend(lines)
        api.store.changed.notify_all()


def stamped(zone="Z"):
    """Lines of few different times and texts, one of them late, as two streams of one container bring them."""
    times = [f"2026-11-24T10:00:{second:02d}.{part:09d}{zone}" for second in (1, 2, 3) for part in (0, 0, 0, 5, 7)]
    times[9], times[10] = times[10], times[9]
    return [f"{at} line {number % 3}" for number, at in enumerate(times)]


@pytest.mark.parametrize(("zone", "cut_after"), [("Z", 1), ("+02:00", 5), ("Z", 10)])
def test_each_line_once_over_many_cuts(api, kubeconfig, zone, cut_after):
    lines = stamped(zone)
    pod = put_pod(api, "Running")
    write(api, pod, *lines[:8])
    api.faults += [Fault("get", "pods/log", cut_after=cut_after + number) for number in range(8)]
    pods, seen = Pods(""), []
    log = PodLog(connect(timing=QUICK), "team", lambda _, line: seen.append(line))
    log.show(pods.see(pod))
    time.sleep(0.1)
    write(api, pod, *lines[8:])
    time.sleep(0.1)
    pods.see(put_pod(api, "Succeeded"))
    log.finish(5)
    assert seen == [line.partition(" ")[2] for line in lines]


def test_line_without_a_time_and_bytes_that_are_no_text(api, kubeconfig):
    pod = put_pod(api, "Succeeded")
    write(api, pod, "2026-11-24T10:00:01.0Z first", "second", "2026-11-24T10:00:02Z ", "2026-11-24T10:00:03Z a  b ")
    seen = []
    log = PodLog(connect(timing=QUICK), "team", lambda _, line: seen.append(line))
    log.show(Pods("").see(pod))
    log.finish(5)
    assert seen == ["first", "second", "", "a  b "]


def test_pod_made_anew_under_the_name_goes_on_where_the_last_one_ended(api, kubeconfig):
    pods, seen = Pods(""), []
    log = PodLog(connect(timing=QUICK), "team", lambda _, line: seen.append(line))
    first = put_pod(api, "Running")
    write(api, first, "2026-11-24T10:00:01Z one")
    log.show(pods.see(first))
    wait_until(lambda: seen == ["one"])
    api.store.delete(KEY)
    second = put_pod(api, "Running")
    write(api, second, "2026-11-24T10:00:02Z two")
    pods.see(first, deleted=True)
    log.show(pods.see(second))
    wait_until(lambda: seen == ["one", "two"])
    write(api, second, "2026-11-24T10:00:03Z three")
    pods.see(put_pod(api, "Succeeded"))
    log.finish(5)
    assert seen == ["one", "two", "three"]
