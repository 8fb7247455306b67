"""Controllers of the tests: they move the status of TFJobs, Jobs and InferenceServices as the real ones do.

What the pods do is written in a script; what follows from it (conditions, restarts, deletions) are the rules of the
training operator 1.9, of the Job controller and of KServe.
"""

import contextlib
import copy
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from tests.kubeflow.api_server import ApiServer
from tests.kubeflow.object_store import Key, Object, now


@dataclass
class Run:
    """One life of a pod.

    Attributes:
        lines: What it prints.
        code: Exit code; None: it runs until it is deleted.
        pause_s: Seconds before each line.
        reason: Reason of its end; empty: Completed or Error.
        waits: Reason for which it never starts, such as ImagePullBackOff.
    """

    lines: list[str] = field(default_factory=list)
    code: int | None = 0
    pause_s: float = 0.005
    reason: str = ""
    waits: str = ""


class _Controller:
    """Sees every change of a kind."""

    plural = ""

    def __init__(self, api: ApiServer) -> None:
        self.api, self.store = api, api.store
        self._stopping = threading.Event()

    @contextlib.contextmanager
    def working(self) -> Iterator[Any]:
        thread = threading.Thread(target=self._loop, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._stopping.set()
            with self.store.changed:
                self.store.changed.notify_all()
            thread.join(5)

    def _loop(self) -> None:
        seen = 0
        while not self._stopping.is_set():
            with self.store.changed:
                news = [event for event in self.store.history if event[0] > seen and event[2] == self.plural]
                seen = self.store.version
                if not news:
                    self.store.changed.wait(0.5)
                    continue
            for _, what, _, found in news:
                if what != "DELETED":
                    self.see(what, found)

    def see(self, what: str, found: Object) -> None:
        raise NotImplementedError


def key_of(plural: str, found: Object) -> Key:
    return plural, found["metadata"]["namespace"], found["metadata"]["name"]


class Kubelet:
    """Runs pods by their scripts.

    Args:
        api: The server.
        scripts: Pod name without the job's -> its lives, in turn; the last is repeated.
    """

    def __init__(self, api: ApiServer, scripts: dict[str, list[Run]]) -> None:
        self.store, self.scripts = api.store, scripts
        self._lives: dict[str, int] = {}

    def start(self, job: Object, short: str, name: str, labels: dict[str, str], container: str) -> Key:
        """Make a pod and let it run its next life in a thread."""
        key = ("pods", job["metadata"]["namespace"], name)
        owner = {
            "apiVersion": job["apiVersion"], "kind": job["kind"], "name": job["metadata"]["name"],
            "uid": job["metadata"]["uid"], "controller": True,
        }  # fmt: skip
        pod = {
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "labels": labels, "ownerReferences": [owner]},
            "spec": {"containers": [{"name": container, "image": "none"}]},
        }  # fmt: skip
        uid = self.store.create(key, pod, "kubelet")["metadata"]["uid"]
        runs = self.scripts.get(short, [Run(code=None)])
        life = self._lives.get(short, 0)
        self._lives[short] = life + 1
        run = runs[min(life, len(runs) - 1)]
        threading.Thread(target=self._live, args=(key, uid, container, run), daemon=True).start()
        return key

    def _live(self, key: Key, uid: str, container: str, run: Run) -> None:
        waiting = {"waiting": {"reason": run.waits or "ContainerCreating", "message": "of the tests"}}
        self._set(key, uid, "Pending", container, waiting)
        if run.waits:
            return
        time.sleep(0.02)
        self._set(key, uid, "Running", container, {"running": {"startedAt": now()}})
        for line in run.lines:
            time.sleep(run.pause_s)
            with self.store.changed:
                stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f") + f"{time.time_ns() % 1000:03d}Z"
                self.store.logs.setdefault((key[1], key[2], uid), []).append(f"{stamp} {line}")
                self.store.changed.notify_all()
        if run.code is None:
            return
        ended = {
            "exitCode": run.code, "reason": run.reason or ("Error" if run.code else "Completed"),
            "startedAt": now(), "finishedAt": now(),
        }  # fmt: skip
        self._set(key, uid, "Failed" if run.code else "Succeeded", container, {"terminated": ended})

    def _set(self, key: Key, uid: str, phase: str, container: str, state: Object) -> None:
        def change(pod: Object) -> None:
            if pod["metadata"]["uid"] == uid:
                pod["status"] = {
                    "phase": phase, "containerStatuses": [{"name": container, "restartCount": 0, "state": state}],
                }  # fmt: skip

        self.store.replace(key, change)


def ended(pod: Object | None) -> Object | None:
    """The end of a pod's only container."""
    statuses = ((pod or {}).get("status") or {}).get("containerStatuses") or [{"state": {}}]
    return statuses[0]["state"].get("terminated")


class TrainingOperator(_Controller):
    """The TFJob controller.

    Args:
        api: The server.
        scripts: `chief-0` -> the lives of that pod, in turn.
    """

    plural = "kubeflow.org/tfjobs"

    def __init__(self, api: ApiServer, scripts: dict[str, list[Run]]) -> None:
        super().__init__(api)
        self._kubelet = Kubelet(api, scripts)

    def see(self, what: str, found: Object) -> None:
        if what == "ADDED":
            threading.Thread(target=self._run, args=(found,), daemon=True).start()

    def _run(self, job: Object) -> None:
        name, key = job["metadata"]["name"], key_of(self.plural, job)
        space = job["metadata"]["namespace"]
        self._condition(key, "Created", "TFJobCreated", f"TFJob {name} is created.", startTime=now())
        pods: dict[tuple[str, int], Key] = {}
        specs = {role.lower(): spec for role, spec in job["spec"]["tfReplicaSpecs"].items()}
        for role, spec in specs.items():
            for index in range(spec.get("replicas", 1)):
                pods[role, index] = self._start(job, role, index)
        chief = next((role for role in ("chief", "master") if role in specs), "worker")
        running = False
        while True:
            with self.store.changed:
                self.store.changed.wait(0.05)
                if (self.store.objects.get(key) or job)["metadata"]["uid"] != job["metadata"]["uid"]:
                    return
                if key not in self.store.objects or self._stopping.is_set():
                    return
                states = {member: self.store.objects.get(pod) for member, pod in pods.items()}
            phase = ((states[chief, 0] or {}).get("status") or {}).get("phase")
            if phase == "Running" and not running:
                running = True
                self._condition(key, "Running", "TFJobRunning", f"TFJob {space}/{name} is running.")
            for (role, index), pod in states.items():
                end = ended(pod)
                if end is None or end["exitCode"] == 0:
                    continue
                policy = specs[role].get("restartPolicy", "Never")
                title = {"ps": "PS"}.get(role, role.capitalize())
                if (policy == "ExitCode" and end["exitCode"] >= 128) or policy in ("OnFailure", "Always"):
                    message = f"TFJob {name} is restarting because {title} replica(s) failed."
                    self._condition(key, "Restarting", "TFJobRestarting", message)
                    running = False
                    self.store.delete(pods[role, index])
                    time.sleep(0.02)
                    pods[role, index] = self._start(job, role, index)
                else:
                    message = f"TFJob {space}/{name} has failed because 1 {title} replica(s) failed."
                    self._end(job, key, "Failed", "TFJobFailed", message)
                    return
            if (end := ended(states[chief, 0])) is not None and end["exitCode"] == 0:
                self._end(job, key, "Succeeded", "TFJobSucceeded", f"TFJob {space}/{name} successfully completed.")
                return

    def _start(self, job: Object, role: str, index: int) -> Key:
        name = job["metadata"]["name"]
        labels = {
            "training.kubeflow.org/job-name": name, "training.kubeflow.org/replica-type": role,
            "training.kubeflow.org/replica-index": str(index),
            "training.kubeflow.org/operator-name": "tfjob-controller",
        }  # fmt: skip
        return self._kubelet.start(job, f"{role}-{index}", f"{name}-{role}-{index}", labels, "tensorflow")

    def _end(self, job: Object, key: Key, kind: str, reason: str, message: str) -> None:
        self._condition(key, kind, reason, message, completionTime=now())
        policy = job["spec"].get("runPolicy", {}).get("cleanPodPolicy", "None")
        label = "training.kubeflow.org/job-name"
        for pod in self.store.list("pods", key[1]):
            if pod["metadata"].get("labels", {}).get(label) != key[2]:
                continue
            if policy == "All" or (policy == "Running" and ended(pod) is None):
                self.store.delete(key_of("pods", pod))

    def _condition(self, key: Key, kind: str, reason: str, message: str, **status: str) -> None:
        def change(job: Object) -> None:
            conditions = job.setdefault("status", {}).setdefault("conditions", [])
            away = {"Running": "Restarting", "Restarting": "Running"}.get(kind)
            conditions[:] = [each for each in conditions if each["type"] not in (kind, away)]
            if kind in ("Succeeded", "Failed"):
                for each in conditions:
                    if each["type"] == "Running":
                        each["status"] = "False"
            conditions.append({
                "type": kind, "status": "True", "reason": reason, "message": message, "lastUpdateTime": now(),
                "lastTransitionTime": now(),
            })  # fmt: skip
            job["status"] |= {"replicaStatuses": {}, **status}

        self.store.replace(key, change)


class JobController(_Controller):
    """The controller of batch Jobs: pods with names of their own, one after another up to backoffLimit.

    Args:
        api: The server.
        scripts: `pod` -> the lives of its pods, in turn.
    """

    plural = "batch/jobs"

    def __init__(self, api: ApiServer, scripts: dict[str, list[Run]]) -> None:
        super().__init__(api)
        self._kubelet = Kubelet(api, scripts)

    def see(self, what: str, found: Object) -> None:
        if what == "ADDED":
            threading.Thread(target=self._run, args=(found,), daemon=True).start()

    def _run(self, job: Object) -> None:
        name, key = job["metadata"]["name"], key_of(self.plural, job)
        labels = {"batch.kubernetes.io/job-name": name, "job-name": name}
        container = job["spec"]["template"]["spec"]["containers"][0]["name"]
        for number in range(job["spec"].get("backoffLimit", 6) + 1):
            self._status(key, active=1, failed=number, startTime=now())
            pod = self._kubelet.start(job, "pod", f"{name}-{uuid.uuid4().hex[:5]}", labels, container)
            while (end := ended(self.store.get(pod))) is None:
                if key not in self.store.objects or self._stopping.is_set():
                    return
                time.sleep(0.02)
            if end["exitCode"] == 0:
                complete = {"type": "Complete", "status": "True", "reason": "CompletionsReached", "message": "Reached."}
                self._status(key, active=0, completionTime=now(), conditions=[complete])
                return
        failed = {
            "type": "Failed", "status": "True", "reason": "BackoffLimitExceeded",
            "message": "Job has reached the specified backoff limit",
        }  # fmt: skip
        self._status(key, active=0, failed=number + 1, conditions=[failed])

    def _status(self, key: Key, **status: Any) -> None:
        self.store.replace(key, lambda job: job.setdefault("status", {}).update(status))


@dataclass
class Rollout:
    """What becomes of a new revision.

    Attributes:
        after_s: Seconds until it is ready, or fails.
        failure: Reason of `lastFailureInfo`; empty: it gets ready.
        code: Exit code of its container.
        invalid: The controller refuses the spec, and makes no revision.
    """

    invalid: bool = False
    after_s: float = 0.05
    failure: str = ""
    code: int = 1


class KServe(_Controller):
    """The InferenceService controller.

    Args:
        api: The server.
        rollouts: What becomes of each revision in turn; the last is repeated.
        mode: Serverless, which has revisions and splits traffic, or Standard, which has neither.
    """

    plural = "serving.kserve.io/inferenceservices"

    def __init__(self, api: ApiServer, rollouts: list[Rollout] | None = None, mode: str = "Serverless") -> None:
        super().__init__(api)
        self._rollouts, self._mode = rollouts or [Rollout()], mode
        self._templates: dict[str, list[Object]] = {}
        self._canaries: dict[str, Any] = {}
        self._generations: dict[str, int] = {}
        self.revisions = 0

    def see(self, what: str, found: Object) -> None:
        uid, predictor = found["metadata"]["uid"], copy.deepcopy(found["spec"]["predictor"])
        if self._generations.get(uid) == found["metadata"]["generation"]:
            return
        self._generations[uid] = found["metadata"]["generation"]
        canary = predictor.pop("canaryTrafficPercent", None)
        # Annotations of the service are those of its revisions: a new one makes a new revision.
        template = {"predictor": predictor, "annotations": found["metadata"].get("annotations")}
        templates = self._templates.setdefault(uid, [])
        is_new = not templates or templates[-1] != template
        if not is_new and self._canaries.get(uid) == canary:
            return
        self._canaries[uid] = canary
        if is_new:
            templates.append(template)
            self.revisions += 1
            rollout = self._rollouts[min(self.revisions, len(self._rollouts)) - 1]
        else:
            rollout = Rollout(after_s=0.02)
        if rollout.invalid:
            templates.pop()
            self._canaries[uid] = rollout  # the next change is one, whatever it is
            self._replace(key_of(self.plural, found), uid, lambda status: self._refuse(status, rollout))
            return
        threading.Thread(
            target=self._roll_out,
            args=(key_of(self.plural, found), uid, len(templates), canary, rollout, is_new),
            daemon=True,
        ).start()

    def _roll_out(self, key: Key, uid: str, number: int, canary: int | None, rollout: Rollout, is_new: bool) -> None:
        name = f"{key[2]}-predictor-{number:05d}"
        time.sleep(0.02)
        if is_new:
            self._replace(key, uid, lambda status: self._begin(status, name))
        time.sleep(rollout.after_s)
        if rollout.failure:
            self._replace(key, uid, lambda status: self._fail(status, name, rollout))
        else:
            self._replace(key, uid, lambda status: self._ready(status, key, name, canary))

    def _replace(self, key: Key, uid: str, change: Any) -> None:
        def changed(found: Object) -> None:
            if found["metadata"]["uid"] == uid:
                change(found.setdefault("status", {}))

        self.store.replace(key, changed)

    def _begin(self, status: Object, name: str) -> None:
        # This is the counter of a child, not of the service.
        status["observedGeneration"] = status.get("observedGeneration", 0) + 1
        status["deploymentMode"] = self._mode
        _conditions(status, PredictorReady="Unknown", IngressReady="Unknown", Ready="Unknown")
        status["modelStatus"] = {"transitionStatus": "InProgress", "states": {"targetModelState": "Pending"}}
        if self._mode == "Serverless":
            component = status.setdefault("components", {}).setdefault("predictor", {})
            component["latestCreatedRevision"] = name

    def _refuse(self, status: Object, rollout: Rollout) -> None:
        info = {"reason": rollout.failure, "message": "refused by the tests"}
        status["modelStatus"] = {"transitionStatus": "InvalidSpec", "lastFailureInfo": info}

    def _fail(self, status: Object, name: str, rollout: Rollout) -> None:
        _conditions(status, PredictorReady="False", Ready="False", reason="RevisionFailed")
        status["modelStatus"] = {
            "transitionStatus": "BlockedByFailedLoad",
            "states": {"activeModelState": "", "targetModelState": "FailedToLoad"},
            "lastFailureInfo": {
                "reason": rollout.failure, "message": f"{name}: no version found", "exitCode": rollout.code,
                "time": now(),
            },
        }  # fmt: skip

    def _ready(self, status: Object, key: Key, name: str, canary: int | None) -> None:
        _conditions(status, PredictorReady="True", IngressReady="True", Ready="True")
        status["modelStatus"] = {
            "transitionStatus": "UpToDate", "states": {"activeModelState": "Loaded", "targetModelState": "Loaded"},
            "copies": {"failedCopies": 0, "totalCopies": 1},
        }  # fmt: skip
        status["url"] = f"http://{key[2]}.{key[1]}.example.com"
        status["address"] = {"url": f"http://{key[2]}.{key[1]}.svc.cluster.local"}
        if self._mode != "Serverless":
            return
        component = status["components"]["predictor"]
        component["latestReadyRevision"] = name
        former = component.get("latestRolledoutRevision")
        percent = 100 if canary is None or former in (None, name) else canary
        component["traffic"] = [{"revisionName": name, "latestRevision": True, "percent": percent}]
        if percent < 100:
            component["traffic"].append(
                {"revisionName": former, "latestRevision": False, "percent": 100 - percent, "tag": "prev"}
            )
        elif former != name:
            component["latestRolledoutRevision"] = name
            if former:
                component["previousRolledoutRevision"] = former


def _conditions(status: Object, reason: str = "", **states: str) -> None:
    conditions = {each["type"]: each for each in status.get("conditions", [])}
    for kind, state in states.items():
        if conditions.get(kind, {}).get("status") != state:
            conditions[kind] = {"type": kind, "status": state, "lastTransitionTime": now(), "severity": ""}
        if state == "False":
            conditions[kind] |= {"reason": reason, "message": f"{reason} of the tests"}
    status["conditions"] = list(conditions.values())
