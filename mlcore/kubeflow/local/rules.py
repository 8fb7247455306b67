"""The training operator's decisions, as functions of what is there: who is made again, and when the job is over."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mlcore.kubeflow.local.tfjob import TYPES, TFJob

Phase = Literal["Pending", "Running", "Succeeded", "Failed"]
State = Literal["Succeeded", "Failed", "DeadlineExceeded"]

_FIRST_BACKOFF_S, _LONGEST_BACKOFF_S = 10.0, 300.0


@dataclass(frozen=True)
class Replica:
    """A pod, as the operator sees it.

    Attributes:
        type: One of `TYPES`.
        index: Its number among those of its type.
        phase: Of the pod.
        exit_code: Of the ended `tensorflow` container; None where it never ran.
        container_restarts: How often the kubelet started it again in the same pod.
    """

    type: str
    index: int
    phase: Phase
    exit_code: int | None = None
    container_restarts: int = 0


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Attributes:
        state: What its condition says.
        message: Why, in words.
        by_limit: Whether a limit of its runPolicy ended it: then all pods are deleted, whatever cleanPodPolicy says.
    """

    state: State
    message: str
    by_limit: bool = False


def is_recreated(restart_policy: str, replica: Replica) -> bool:
    """Whether the operator deletes a failed pod and makes it again.

    A container that never ran (a failed init container) has no exit code; the operator takes it for one that may pass.
    """
    if replica.phase != "Failed" or restart_policy != "ExitCode":
        return False
    return replica.exit_code is None or replica.exit_code >= 128


def container_restarts(restart_policy: str, exit_code: int) -> bool:
    """Whether the kubelet starts an ended container again in the same pod."""
    return restart_policy == "Always" or (restart_policy == "OnFailure" and exit_code != 0)


def restart_delay_s(restarts: int) -> float:
    """Seconds that the kubelet waits before the next start: none, 10, 20, 40, ... up to 300."""
    return 0.0 if restarts == 0 else min(_FIRST_BACKOFF_S * 2.0 ** min(restarts - 1, 16), _LONGEST_BACKOFF_S)


def exceeded(job: TFJob, replicas: Sequence[Replica], seconds: float) -> Outcome | None:
    """Whether the job fails by a limit of its runPolicy; the operator looks at these first."""
    if job.backoff_limit is not None:
        restarts = sum(
            replica.container_restarts
            for replica in replicas
            if job.replica_specs[replica.type].restart_policy in ("OnFailure", "Always")
            and replica.phase in ("Pending", "Running")
        )
        new_failure = job.backoff_limit == 0 and any(replica.phase == "Failed" for replica in replicas)
        if new_failure or restarts >= max(job.backoff_limit, 1):
            return Outcome("Failed", f"it has reached backoffLimit ({job.backoff_limit})", by_limit=True)
    if job.active_deadline_s is not None and seconds >= job.active_deadline_s:
        message = f"it was active longer than activeDeadlineSeconds ({job.active_deadline_s})"
        return Outcome("DeadlineExceeded", message, by_limit=True)
    return None


def verdict(job: TFJob, replicas: Sequence[Replica]) -> Outcome | None:
    """Whether the job is over by what its replicas did; those that are made again are not among them.

    The types are looked at in the operator's order, and the first verdict stands.
    """
    for kind in TYPES:
        if kind not in job.replica_specs:
            continue
        own = [replica for replica in replicas if replica.type == kind]
        succeeded = [replica for replica in own if replica.phase == "Succeeded"]
        failed = [replica for replica in own if replica.phase == "Failed"]
        all_succeeded = len(succeeded) == job.replica_specs[kind].replicas
        if kind == job.leader and all_succeeded:
            return Outcome("Succeeded", f"the {kind.lower()} completed")
        if kind == "Worker" and job.leader is None:
            if all_succeeded:
                return Outcome("Succeeded", "all workers completed")
            if job.success_policy != "AllWorkers" and any(replica.index == 0 for replica in succeeded):
                return Outcome("Succeeded", "worker 0 completed")
        if failed and not (kind == "Worker" and job.dynamic_worker):
            ends = ", ".join(f"{job.pod_name(kind, replica.index)} {_ended(replica)}" for replica in failed)
            return Outcome("Failed", f"{len(failed)} {kind} replica(s) failed: {ends}")
    return None


def _ended(replica: Replica) -> str:
    return "never ran" if replica.exit_code is None else f"ended with {replica.exit_code}"


def is_deleted(clean_pod_policy: str, phase: Phase) -> bool:
    """Whether the operator deletes a pod when the job has succeeded or failed."""
    return clean_pod_policy == "All" or (clean_pod_policy == "Running" and phase in ("Pending", "Running"))
