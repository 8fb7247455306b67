"""The pods of a job: what became of each, even after the operator has deleted it."""

import logging
from dataclasses import dataclass, field
from datetime import datetime

from mlcore.kubeflow.cluster import Object

log = logging.getLogger(__name__)

_KILLED = (137, 143)  # SIGKILL, SIGTERM: what the others get once one has failed
_ORDINARY = ("ContainerCreating", "PodInitializing", "")


@dataclass(frozen=True)
class Exit:
    """The end of a container.

    Attributes:
        pod: Name of its pod.
        uid: The pod's uid.
        container: Its name.
        code: Exit code.
        reason: Such as Error, OOMKilled, Evicted.
        message: What it left in its termination message.
        finished_at: When, in RFC 3339.
    """

    pod: str
    uid: str
    container: str
    code: int
    reason: str
    message: str
    finished_at: str

    def __str__(self) -> str:
        reason = f" ({self.reason})" if self.reason not in ("", "Error") else ""
        return f"pod {self.pod}, container {self.container}, exit code {self.code}{reason}"


@dataclass
class Pod:
    """One pod, as it was last seen.

    Attributes:
        name: Its name.
        uid: Its uid; a pod that is made again has the name and not the uid.
        phase: Pending, Running, Succeeded, Failed or Unknown.
        container: The container that does the work.
        started: Whether that container has run, so that there is a log.
        restarts: How often its containers were started again in place.
        waiting: Why it does not run, where that is worth a word.
        deleted: Whether it is gone.
        exits: The last end of each container.
    """

    name: str
    uid: str
    phase: str = ""
    container: str = ""
    started: bool = False
    restarts: int = 0
    waiting: str = ""
    deleted: bool = False
    exits: dict[str, Exit] = field(default_factory=dict)

    @property
    def is_over(self) -> bool:
        """Whether no container of it will write anything more."""
        return self.deleted or self.phase in ("Succeeded", "Failed")


class Pods:
    """All pods of a job that were ever seen.

    Args:
        container: Name of the container that does the work; empty: the first of each pod.
    """

    def __init__(self, container: str) -> None:
        self._container = container
        self.by_uid: dict[str, Pod] = {}

    def see(self, found: Object, *, deleted: bool = False) -> Pod:
        """Take note of a pod's state and log what has changed."""
        metadata, status = found["metadata"], found.get("status") or {}
        pod = self.by_uid.setdefault(metadata["uid"], Pod(metadata["name"], metadata["uid"]))
        pod.container = self._container_of(found)
        pod.deleted = pod.deleted or deleted
        phase = status.get("phase") or "Pending"
        statuses = [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]
        before = dict(pod.exits)
        pod.restarts = sum(each.get("restartCount") or 0 for each in status.get("containerStatuses") or [])
        waiting = _scheduling(status)
        for each in statuses:
            state = each.get("state") or {}
            for part in (each.get("lastState") or {}, state):
                if ended := part.get("terminated"):
                    pod.exits[each["name"]] = _exit(pod, each["name"], ended)
            if each["name"] == pod.container and ({"running", "terminated"} & set(state) or each.get("restartCount")):
                pod.started = True
            if (reason := (state.get("waiting") or {}).get("reason") or "") not in _ORDINARY:
                waiting = ": ".join(filter(None, (reason, (state["waiting"].get("message") or ""))))
        if phase == "Failed" and not any(end.code for end in pod.exits.values()) and status.get("reason"):
            # Evicted before or without an exit code of its own.
            pod.exits[pod.container] = Exit(
                pod.name, pod.uid, pod.container, _KILLED[0], status["reason"], status.get("message") or "", ""
            )
        self._tell(pod, phase, waiting, before)
        pod.phase, pod.waiting = phase, waiting
        return pod

    def _container_of(self, found: Object) -> str:
        names: list[str] = [container["name"] for container in found["spec"]["containers"]]
        default = (found["metadata"].get("annotations") or {}).get("kubectl.kubernetes.io/default-container")
        return next((name for name in (self._container, default) if name in names), names[0])

    def _tell(self, pod: Pod, phase: str, waiting: str, before: dict[str, Exit]) -> None:
        if waiting and waiting != pod.waiting:
            log.warning("pod %s waits: %s", pod.name, waiting)
        for name, end in pod.exits.items():
            if before.get(name) != end and end.code:
                log.warning("pod %s: container %s ended with exit code %d %s", pod.name, name, end.code, end.reason)
        if phase != pod.phase:
            log.info("pod %s: %s", pod.name, phase)

    def only(self, uids: set[str]) -> None:
        """Mark every pod that is not among these as gone."""
        for pod in self.by_uid.values():
            if pod.uid not in uids:
                pod.deleted = True

    @property
    def restarts(self) -> int:
        """How often a container or pod was started again."""
        names = {pod.name for pod in self.by_uid.values()}
        return len(self.by_uid) - len(names) + sum(pod.restarts for pod in self.by_uid.values())

    def waiting(self) -> list[str]:
        """What keeps pods from running, one line each."""
        pods = [pod for pod in self.by_uid.values() if pod.waiting and not pod.is_over]
        return [f"pod {pod.name} waits: {pod.waiting}" for pod in pods]

    def failure(self, *, last: bool = False) -> Exit | None:
        """The end that made the job fail: the first that was no consequence of another's, of the newest pods.

        Args:
            last: The last instead: of pods that are tries of the same work.
        """
        newest = {pod.name: pod for pod in self.by_uid.values()}
        ends = [end for pod in newest.values() for end in pod.exits.values() if end.code]
        causes = [end for end in ends if end.code not in _KILLED or end.reason not in ("", "Error")] or ends
        ordered = sorted(causes, key=lambda end: end.finished_at or "9")  # in seconds; of equal ones as they were seen
        return ordered[-1 if last else 0] if ordered else None


def _exit(pod: Pod, container: str, ended: Object) -> Exit:
    return Exit(
        pod.name, pod.uid, container, ended.get("exitCode") or 0, ended.get("reason") or "",
        ended.get("message") or "", ended.get("finishedAt") or "",
    )  # fmt: skip


def _scheduling(status: Object) -> str:
    for condition in status.get("conditions") or []:
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            return ": ".join(filter(None, (condition.get("reason") or "", condition.get("message") or "")))
    return ""


def parse_time(text: str | None) -> datetime | None:
    """An RFC 3339 time of the server."""
    return datetime.fromisoformat(text) if text else None
