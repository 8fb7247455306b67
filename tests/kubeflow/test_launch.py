"""launch: jobs on an API server of the tests' own, as their controllers move them."""

import json
import logging
import threading
import time

import pytest
import yaml

from mlcore.kubeflow import job_kinds, job_template
from mlcore.kubeflow.cluster import Timing
from mlcore.kubeflow.launch import Launch, launch
from mlcore.runtime.errors import DataError, TransientError, UsageError
from tests.kubeflow.api_server import Fault
from tests.kubeflow.operators import JobController, Run, TrainingOperator
from tests.waiting import wait_until, when

QUICK = Timing(
    connect_s=2, answer_s=2, patience_s=1.5, backoff_s=0.05, backoff_max_s=0.2, watch_s=1, outage_s=1.5,
    log_silence_s=2, log_poll_s=0.05, log_end_s=3, gone_s=3, stop_s=3,
)  # fmt: skip

TFJOB = """
apiVersion: kubeflow.org/v1
kind: TFJob
metadata:
  name: {{name}}
spec:
  runPolicy: {cleanPodPolicy: Running}
  tfReplicaSpecs:
    Chief: &replica
      replicas: 1
      restartPolicy: ExitCode
      template:
        spec:
          containers:
            - name: tensorflow
              image: mlcore/mnist-train
              args: ["--epochs=${epochs}", "--data-dir=/data"]
    Worker:
      <<: *replica
      replicas: {{ workers }}
    PS:
      <<: *replica
"""
JOB = """
apiVersion: batch/v1
kind: Job
metadata: {name: convert}
spec:
  backoffLimit: 2
  template:
    spec:
      restartPolicy: Never
      containers: [{name: convert, image: mlcore/convert}]
"""
KEY = ("kubeflow.org/tfjobs", "team", "digits")
VALUES = {"name": "digits", "epochs": "3", "workers": "2"}


def job(text=TFJOB, **values):
    return job_template.render(text, "job.yaml", values or (VALUES if text == TFJOB else {}))


def run(made, **options):
    settings = {"namespace": "team", "timeout_s": 20, "timing": QUICK, **options}
    return Launch(job_template.named(made, "job.yaml", unique_name=False), job_kinds.kind_of(made, "job.yaml"),
                  **settings).run()  # fmt: skip


def is_followed(api):
    """Whether the job runs, with all its pods, and the step watches both."""
    phases = [(pod.get("status") or {}).get("phase") for pod in api.store.list("pods", "team")]
    conditions = ((api.store.get(KEY) or {}).get("status") or {}).get("conditions") or []
    watched = {request[1] for request in api.requests if request[0] == "watch"}
    running = any(condition["type"] == "Running" for condition in conditions)
    return running and set(phases) == {"Running"} and watched == {"pods", "tfjobs"}


def watching():
    """Threads that watch something."""
    return [thread for thread in threading.enumerate() if "_pump" in thread.name]


@pytest.fixture
def tfjobs(api, kubeconfig):
    """A training operator whose pods follow a script; without one they run for ever."""

    def start(**scripts):
        return TrainingOperator(api, {name.replace("_", "-"): runs for name, runs in scripts.items()}).working()

    return start


@pytest.fixture(autouse=True)
def logs(caplog):
    caplog.set_level(logging.INFO, "mlcore")
    return caplog


LINES = ["starting", "2026-11-24T10:00:00Z loss=0.5", "2026-11-24T10:00:01Z loss=0.250000",
         "2026-11-24T10:00:02Z accuracy=0.973100", "model_dir=/data/model 1"]  # fmt: skip


def chief_lines(caplog):
    return [
        record.getMessage().partition(" | ")[2] for record in caplog.records if "-chief-0 | " in record.getMessage()
    ]


def test_tfjob_is_created_followed_and_its_metrics_returned(api, tfjobs, logs, capsys):
    with tfjobs(chief_0=[Run(LINES, pause_s=0.1)]):
        result = run(job())
    assert (result.name, result.state, result.restarts) == ("digits", "Succeeded", 0)
    assert result.metrics == {"loss": 0.25, "accuracy": 0.9731}
    assert result.outputs == {"model_dir": "/data/model 1"}
    assert capsys.readouterr().out.splitlines() == LINES[1:4]
    assert chief_lines(logs) == ["starting", "model_dir=/data/model 1"]
    messages = "\n".join(record.getMessage() for record in logs.records)
    for words in ("Created (TFJobCreated: TFJob digits is created.)", "Running (TFJobRunning: TFJob team/digits",
                  "Succeeded (TFJobSucceeded: ", "pod digits-worker-1: Running"):  # fmt: skip
        assert words in messages
    there = api.store.get(("kubeflow.org/tfjobs", "team", "digits"))
    assert there["spec"]["tfReplicaSpecs"]["Worker"]["replicas"] == 2
    assert there["spec"]["tfReplicaSpecs"]["Chief"]["template"]["spec"]["containers"][0]["args"][0] == "--epochs=3"
    assert there["metadata"]["managedFields"][0]["manager"] == "mlcore"


def test_job_without_a_chief_shows_worker_0(tfjobs, logs):
    made = job()
    del made["spec"]["tfReplicaSpecs"]["Chief"]
    with tfjobs(worker_0=[Run(["a=1"])], worker_1=[Run(["a=2"])], ps_0=[Run(code=None)]):
        assert run(made).metrics == {"a": 1}


def test_again_is_up_to_date_and_has_the_metrics_still(api, tfjobs, logs):
    with tfjobs(chief_0=[Run(LINES)]):
        first = run(job())
        uid = api.store.get(("kubeflow.org/tfjobs", "team", "digits"))["metadata"]["uid"]
        second = run(job())
    assert second.metrics == first.metrics
    assert "up to date" in logs.text
    assert api.store.get(("kubeflow.org/tfjobs", "team", "digits"))["metadata"]["uid"] == uid
    assert sum(request[0] == "create" for request in api.requests) == 1


@pytest.mark.slow
def test_running_job_of_the_same_manifest_is_followed(api, tfjobs, logs):
    with tfjobs(chief_0=[Run(["a=1", "a=2"], pause_s=0.3)]):
        with pytest.raises(TransientError, match=r"not done after 0\.2 s"):
            run(job(), timeout_s=0.2)
        assert run(job()).metrics == {"a": 2}
    assert "is there already" in logs.text
    assert sum(request[0] == "create" for request in api.requests) == 1


def test_job_that_kubectl_made_is_known_by_its_content(api, tfjobs):
    with tfjobs(chief_0=[Run(["a=1"])]):
        made = job()
        made["spec"]["runPolicy"]["backoffLimit"] = 3  # what a server or another tool adds
        api.store.create(("kubeflow.org/tfjobs", "team", "digits"), made, "kubectl-create")
        assert run(job()).metrics == {"a": 1}
        with pytest.raises(DataError, match=r"spec.tfReplicaSpecs.Worker.replicas differs"):
            run(job(**{**VALUES, "workers": "3"}))


def test_another_manifest_under_the_name_is_refused_and_replaced_on_demand(api, tfjobs):
    with tfjobs(chief_0=[Run(["a=1"]), Run(["a=2"])]):
        run(job())
        other = job(**{**VALUES, "epochs": "4"})
        with pytest.raises(DataError, match=r"made from another manifest.*--overwrite=true"):
            run(other)
        assert run(other, overwrite=True).metrics == {"a": 2}
    (there,) = api.store.list("kubeflow.org/tfjobs")
    assert there["spec"]["tfReplicaSpecs"]["Chief"]["template"]["spec"]["containers"][0]["args"][0] == "--epochs=4"


def test_failed_job_fails_again_until_it_is_overwritten(tfjobs):
    with tfjobs(chief_0=[Run(["a=1"], code=1), Run(["a=2"])]):
        for _ in range(2):
            with pytest.raises(DataError):
                run(job())
        assert run(job(), overwrite=True).metrics == {"a": 2}


@pytest.mark.parametrize(
    ("code", "reason", "error"),
    [
        (2, "", DataError),
        (65, "", DataError),
        (1, "", DataError),
        (75, "", TransientError),
        (138, "", TransientError),
        (139, "", DataError),
        (137, "OOMKilled", DataError),
    ],
)
def test_failure_has_the_exit_code_of_its_kind_and_says_where(tfjobs, tmp_path, code, reason, error):
    worker = Run(["reading", "train.record: record 17 is cut"], code=code, reason=reason)
    made = job()
    made["spec"]["tfReplicaSpecs"]["Worker"]["restartPolicy"] = "Never"
    with tfjobs(worker_1=[worker]), pytest.raises(error) as raised:
        run(made, output_dir=tmp_path / "out")
    text = str(raised.value)
    assert "TFJobFailed: TFJob team/digits has failed because 1 Worker replica(s) failed." in text
    assert f"pod digits-worker-1, container tensorflow, exit code {code}" in text and reason in text
    assert "reading | train.record: record 17 is cut" in text
    outcome = json.loads((tmp_path / "out" / "outcome.json").read_text())
    assert (outcome["state"], outcome["exit_code"]) == ("Failed", raised.value.exit_code)
    assert (outcome["failure"]["pod"], outcome["failure"]["code"]) == ("digits-worker-1", code)


def test_pods_that_are_made_anew_are_counted_and_their_logs_shown_in_turn(tfjobs, logs):
    with tfjobs(
        chief_0=[Run(["one", "a=1"], 138, 0.2), Run(["two", "a=2"])], worker_0=[Run(["w"], 143, 0.2), Run(code=None)]
    ):
        result = run(job())
    assert result.restarts == 2
    assert result.metrics == {"a": 2}
    assert chief_lines(logs) == ["one", "two"]
    assert "Restarting (TFJobRestarting: " in logs.text


def test_failure_is_known_though_the_operator_deletes_all_pods(tfjobs):
    made = job()
    made["spec"]["runPolicy"]["cleanPodPolicy"] = "All"
    with (
        tfjobs(chief_0=[Run(["bad data"], code=65, pause_s=0.3)]),
        pytest.raises(DataError, match=r"chief-0.*exit code 65.*bad data"),
    ):
        run(made)


@pytest.mark.slow
def test_deadline_names_the_condition_and_what_waits_and_leaves_the_job(api, tfjobs):
    with tfjobs(worker_1=[Run(waits="ImagePullBackOff")]), pytest.raises(TransientError) as raised:
        run(job(), timeout_s=0.8)
    for words in ("not done after", "Running (TFJobRunning", "digits-worker-1 waits: ImagePullBackOff", "goes on"):
        assert words in str(raised.value)
    assert api.store.list("kubeflow.org/tfjobs")


def test_deadline_of_a_job_without_pods_shows_what_its_events_say(api, kubeconfig):
    with pytest.raises(TransientError, match="it has no pods; no event tells why; is its operator running"):
        run(job(), timeout_s=0.3)
    event = {
        "apiVersion": "v1", "kind": "Event", "metadata": {"name": "e"}, "involvedObject": {"name": "digits"},
        "type": "Warning", "reason": "FailedCreatePod", "message": "violates PodSecurity restricted",
    }  # fmt: skip
    api.store.create(("events", "team", "e"), event)
    with pytest.raises(TransientError, match="it has no pods; FailedCreatePod: violates PodSecurity restricted"):
        run(job(), timeout_s=0.3)


def test_job_that_someone_deletes_is_transient(api, tfjobs):
    with tfjobs(chief_0=[Run(["a=1"] * 10, pause_s=0.1)]):
        when(lambda: is_followed(api), lambda: api.store.delete(KEY))
        with pytest.raises(TransientError, match="deleted by someone else while it was Running"):
            run(job())


def test_job_of_the_batch_api_with_retries(api, kubeconfig, logs):
    with JobController(api, {"pod": [Run(["first"], code=75), Run(["images=12"])]}).working():
        result = run(job(JOB))
    assert (result.metrics, result.state, result.restarts) == ({"images": 12}, "Succeeded", 1)


@pytest.mark.parametrize(("codes", "error"), [((65, 75, 75), TransientError), ((75, 75, 65), DataError)])
def test_last_try_of_a_job_decides(api, kubeconfig, codes, error):
    runs = [Run([f"try {number}"], code=code, pause_s=0.05) for number, code in enumerate(codes)]
    with JobController(api, {"pod": runs}).working(), pytest.raises(error, match=rf"exit code {codes[-1]}.*try 2"):
        run(job(JOB))


def test_trainjob_and_experiment_end_by_their_own_conditions(api, kubeconfig):
    trainjob = {
        "apiVersion": "trainer.kubeflow.org/v1alpha1", "kind": "TrainJob", "metadata": {"name": "t"},
        "spec": {"runtimeRef": {"name": "tensorflow"}},
    }  # fmt: skip
    experiment = {
        "apiVersion": "kubeflow.org/v1beta1", "kind": "Experiment", "metadata": {"name": "e"},
        "spec": {"maxTrialCount": 3},
    }  # fmt: skip
    ends = {
        "trainer.kubeflow.org/trainjobs": ("t", {"type": "Complete", "reason": "AllJobsCompleted"}, {}),
        "kubeflow.org/experiments": ("e", {"type": "Succeeded", "reason": "ExperimentSucceeded"}, {
            "currentOptimalTrial": {
                "bestTrialName": "e-7", "parameterAssignments": [{"name": "lr", "value": "0.01"}],
                "observation": {"metrics": [{"name": "accuracy", "latest": "0.98"}]},
            },
        }),
    }  # fmt: skip

    def end(plural):
        name, condition, more = ends[plural]
        condition |= {"status": "True", "message": "done"}
        while not api.store.replace((plural, "team", name), lambda found: found.update(
                status={"conditions": [condition], **more})):  # fmt: skip
            time.sleep(0.02)

    for plural in ends:
        threading.Thread(target=end, args=(plural,), daemon=True).start()
    assert run(trainjob).state == "Succeeded"
    result = run(experiment)
    assert result.metrics == {"accuracy": 0.98} and result.outputs == {"lr": "0.01", "best_trial": "e-7"}


# What may go wrong between us and the server.


@pytest.mark.slow
@pytest.mark.parametrize(
    "faults",
    [
        [Fault("create", "tfjobs", drop="after")],
        [Fault("create", "tfjobs", drop="before", times=2)],
        [Fault("create", "tfjobs", status=500)],
        [Fault("get", "tfjobs", status=429, headers={"Retry-After": "1"}, reason="TooManyRequests")],
        [Fault("", "", status=503, reason="", times=4)],
        [Fault("watch", "tfjobs", gone_event=True, times=2), Fault("watch", "pods", status=410, reason="Expired")],
        [Fault("watch", "", cut_after=0, times=3)],
        [Fault("watch", "", drop="before", times=4)],
        [Fault("list", "", wait_s=0.5, times=2)],
        [Fault("", "pods/log", cut_after=3), Fault("", "pods/log", cut_after=6), Fault("", "pods/log", status=502)],
        [Fault("get", "pods/log", wait_s=2.5)],
    ],
    ids=["lost-answer", "dropped", "500", "429", "503-of-a-proxy", "410", "cut-watch", "no-watch", "slow", "cut-log",
         "silent-log"],
)  # fmt: skip
def test_faults_of_server_and_network_are_survived_and_no_line_is_lost_or_doubled(api, tfjobs, logs, faults):
    api.faults += faults
    api.bookmark_s = 0.05  # so that every watch has something that can be cut
    lines = [f"line {number}" for number in range(40)]
    lines[7:7] = ["same", "same"]
    with tfjobs(chief_0=[Run([*lines, "a=1"], pause_s=0.01)]):
        assert run(job()).metrics == {"a": 1}
    assert chief_lines(logs) == lines
    assert all(fault.times == 0 for fault in api.faults), "the fault was not met"
    assert len(api.store.list("kubeflow.org/tfjobs")) == 1


@pytest.mark.slow
def test_history_that_the_server_has_forgotten_is_listed_again(api, tfjobs, logs):
    def forget():
        api.store.forgotten = api.store.version + 1
        api.faults.append(Fault("watch", "", drop="before", times=2))

    with tfjobs(chief_0=[Run([f"a={n}" for n in range(30)], pause_s=0.1)]):
        when(lambda: is_followed(api), forget)
        assert run(job()).metrics == {"a": 29}
    assert "listing again" in logs.text


@pytest.mark.slow
def test_server_that_stays_away_is_transient_within_the_bound(api, tfjobs):
    api.faults.append(Fault(drop="before", times=10000))
    started = time.monotonic()
    with pytest.raises(TransientError, match=rf"{api.url}: no answer .*tried for 2 s"):
        run(job())
    assert time.monotonic() - started < 6


@pytest.mark.slow
def test_server_that_goes_away_while_the_job_runs_is_transient(api, tfjobs):
    with tfjobs(chief_0=[Run(code=None)]):
        when(lambda: is_followed(api), lambda: api.faults.append(Fault(drop="before", times=10000)))
        with pytest.raises(TransientError, match="no answer"):
            run(job(), timeout_s=30)


@pytest.mark.parametrize(
    ("denied", "words"),
    [
        (("create", "tfjobs"), 'may not create tfjobs.kubeflow.org in namespace team; its Role lacks apiGroups: '
         '["kubeflow.org"], resources: ["tfjobs"], verbs: ["create"]'),
        (("watch", "tfjobs"), 'verbs: ["watch"]'),
    ],
)  # fmt: skip
def test_missing_permission_names_what_the_role_lacks(api, tfjobs, denied, words):
    api.denied.add(denied)
    with tfjobs(), pytest.raises(UsageError) as raised:
        run(job())
    assert words in str(raised.value)
    assert "system:serviceaccount:team:runner" in str(raised.value)


@pytest.mark.parametrize("denied", [("list", "pods"), ("get", "pods/log")])
def test_job_is_followed_without_permission_for_its_pods(api, tfjobs, logs, denied):
    api.denied.add(denied)
    with tfjobs(chief_0=[Run(["a=1"])]):
        assert run(job()).metrics == {}
    assert f'verbs: ["{denied[0]}"]' in logs.text


def test_kind_that_is_not_installed_says_what_to_install(api, kubeconfig):
    del api.installed["kubeflow.org/tfjobs"]
    with pytest.raises(UsageError, match=r"knows no TFJob \(kubeflow.org/v1\): install the training operator"):
        run(job())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda made: made["spec"].update(replicas=3), 'unknown field "spec.replicas"'),
        (lambda made: made["spec"]["tfReplicaSpecs"]["Worker"].update(replicas="two"), "is invalid"),
        (lambda made: made["spec"]["tfReplicaSpecs"]["PS"]["template"]["spec"]["containers"][0].update(name="ps"),
         "no container named tensorflow"),
    ],
    ids=["unknown-field", "wrong-type", "webhook"],
)  # fmt: skip
def test_manifest_that_the_server_refuses_is_wrong_use(api, kubeconfig, change, words):
    made = json.loads(json.dumps(job()))
    change(made)
    with pytest.raises(UsageError, match="TFJob digits: refused by the server") as raised:
        run(made)
    assert words in str(raised.value)


def test_namespace_that_is_not_there(api, kubeconfig):
    with pytest.raises(UsageError, match=r"--namespace=nowhere: .* has no such namespace"):
        run(job(), namespace="nowhere")


def test_namespace_of_flag_and_manifest_must_agree(api, kubeconfig):
    made = job()
    made["metadata"]["namespace"] = "other"
    with pytest.raises(UsageError, match=r"--namespace=team: the manifest says metadata\.namespace=other"):
        run(made)


# The step as it is called.


def test_inline_manifest_with_a_unique_name_in_the_namespace_of_the_context(api, tfjobs):
    with tfjobs(chief_0=[Run(["a=1"])]):
        result = launch(manifest=TFJOB, set=("name=digits", "epochs=1", "workers=1"), unique_name=True)
    assert result.name.startswith("digits-") and len(result.name) == len("digits-") + 5
    assert api.store.get(("kubeflow.org/tfjobs", "team", result.name))


def test_generate_name_of_the_manifest_makes_a_new_job_each_time(api, kubeconfig):
    text = yaml.safe_dump({**job(JOB), "metadata": {"generateName": "convert-"}})
    with JobController(api, {"pod": [Run(["images=1"])]}).working():
        names = {launch(manifest=text).name for _ in range(2)}
    assert len(names) == 2


def test_output_directory_that_is_a_file(kubeconfig, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"--output-dir=.*/file: expected a directory"):
        launch(manifest=JOB, output_dir=tmp_path / "file")


@pytest.mark.slow
def test_nothing_watches_on_once_the_step_has_ended(api, tfjobs):
    with tfjobs(chief_0=[Run(["a=1"])]):
        launch(manifest=TFJOB, set=("name=digits", "epochs=1", "workers=1"))
        api.bookmark_s = 0.05  # the event with which an open watch sees that it is over
        wait_until(lambda: not watching())
        asked = len(api.requests)
        api.store.create(("pods", "team", "other"), {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "other"}})
        time.sleep(0.3)
        assert len(api.requests) == asked
    assert not watching()
