"""A job from its creation to its end: conditions, pods, the chief's log and what it printed as results."""

import logging
import re
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from mlcore.kubeflow.answers import Forbidden, Request
from mlcore.kubeflow.cluster import EVENTS, PODS, Cluster, Object
from mlcore.kubeflow.job_kinds import FINISHED, JobKind, Verdict, best_trial
from mlcore.kubeflow.job_pods import Exit, Pods, parse_time
from mlcore.kubeflow.pod_logs import PodLog
from mlcore.kubeflow.watches import Change, Feed, Watch
from mlcore.runtime.errors import MlcoreError, TransientError

log = logging.getLogger(__name__)

# As steps print their results: `2026-11-24T14:44:03Z accuracy=0.973100`, `model_dir=/data/model`.
_NUMBER = re.compile(r"(?:\d{4}-\d\d-\d\dT\S+ )?([A-Za-z_][\w-]*)=([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)")
_TEXT = re.compile(r"([a-z][a-z0-9_]*)=(\S.*)")
_LAST_LINES = 5


@dataclass
class Outcome:
    """What became of a job.

    Attributes:
        verdict: Its last state.
        seconds: From its start to its end, by the cluster's clock where it tells both.
        restarts: How often containers or pods were started again.
        metrics: Numbers that the chief printed, the last of each name.
        outputs: Texts that it printed as `name=text`, the last of each name.
        failure: The container that made it fail, where one was seen.
        last_lines: What that container wrote last.
    """

    verdict: Verdict
    seconds: float
    restarts: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)
    failure: Exit | None = None
    last_lines: list[str] = field(default_factory=list)


class DeadlineExceeded(TransientError):
    """The job was not done in time."""


class JobFollower:
    """Follows one job.

    Args:
        cluster: Where.
        kind: Its kind.
        job: The job as the server returned it.
        on_metric: Called with each line that holds a metric.
    """

    def __init__(self, cluster: Cluster, kind: JobKind, job: Object, on_metric: Callable[[str], object]) -> None:
        self._cluster, self._kind, self._job, self._on_metric = cluster, kind, job, on_metric
        self.name: str = job["metadata"]["name"]
        self._namespace: str = job["metadata"]["namespace"]
        self.verdict = kind.verdict(job)
        self._pods = Pods(kind.container)
        self._pods_hidden = False  # no permission to see them
        self._logs: dict[str, PodLog] = {}
        self._lines: dict[str, deque[str]] = {}
        self._lock = threading.Lock()
        self._told: dict[str, tuple[str, str, str]] = {}
        self._metrics: dict[str, float] = {}
        self._outputs: dict[str, str] = {}

    def follow(self, timeout_s: float, started: float) -> Outcome:
        """Wait for the end of the job.

        Args:
            timeout_s: How long.
            started: Since when, by the monotonic clock.

        Raises:
            DeadlineExceeded: It did not come in time.
            TransientError: The job was deleted meanwhile, or the server does not answer.
            MlcoreError: The server refuses.
        """
        deadline = started + timeout_s
        feed = Feed()
        feed.add("job", Watch(self._cluster, self._kind.resource, self._namespace, name=self.name))
        if self._kind.job_label:
            feed.add("pods", Watch(self._cluster, PODS, self._namespace, labels=f"{self._kind.job_label}={self.name}"))
        self._see_job(self._job)
        while self.verdict.state not in FINISHED:
            if time.monotonic() >= deadline:
                raise DeadlineExceeded(self._too_late(timeout_s))
            self._take(feed.next(min(deadline - time.monotonic(), 1)))
        self._await_pods(feed)
        for each in list(self._logs.values()):
            each.finish(self._cluster.timing.log_end_s)
        return self._outcome(time.monotonic() - started)

    def _await_pods(self, feed: Feed) -> None:
        """Learn how the pods ended: the job's end may be heard of before theirs.

        The job's controller saw them end, so that a listing from now on shows it; of pods that are deleted already only
        the watch can tell.
        """
        if not self._kind.job_label or self._pods_hidden:
            return
        selectors = {"labelSelector": f"{self._kind.job_label}={self.name}"}
        try:
            listing = self._cluster.list(PODS, self._namespace, selectors)
            self._see_pods(Change(tuple(listing["items"]), listed=True))
            end = time.monotonic() + min(self._cluster.timing.log_end_s, 3)
            while self.verdict.state == "Failed" and self._failure() is None and time.monotonic() < end:
                self._take(feed.next(0.2))
        except MlcoreError as error:  # the outcome is known without them
            log.warning("the pods of %s are not seen: %s", self._what, error)

    def _take(self, item: tuple[str, Change | Exception] | None) -> None:
        if item is None:
            return
        source, change = item
        if isinstance(change, Exception):
            if source == "pods" and isinstance(change, Forbidden):
                log.warning("the job is followed without its pods and their logs: %s", change)
                self._pods_hidden = True
                return
            raise change
        if source == "pods":
            self._see_pods(change)
            return
        mine = [found for found in change.objects if found["metadata"]["uid"] == self._job["metadata"]["uid"]]
        for found in mine:
            self._see_job(found)
        if ((change.deleted and mine) or (change.listed and not mine)) and self.verdict.state not in FINISHED:
            raise TransientError(f"{self._what}: was deleted by someone else while it was {self.verdict}")

    @property
    def _what(self) -> str:
        return f"{self._kind.resource.kind} {self.name}"

    def _see_job(self, found: Object) -> None:
        self._job = found
        for condition in (found.get("status") or {}).get("conditions") or []:
            now = (condition.get("status") or "", condition.get("reason") or "", condition.get("message") or "")
            if self._told.get(condition["type"]) != now:
                self._told[condition["type"]] = now
                if now[0] == "True":
                    log.info("%s: %s (%s: %s)", self._what, condition["type"], now[1], now[2])
        self.verdict = self._kind.verdict(found)

    def _see_pods(self, change: Change) -> None:
        mine = [found for found in change.objects if self._belongs(found)]
        for found in mine:
            pod = self._pods.see(found, deleted=change.deleted)
            if pod.started and self._kind.is_chief(self._job, found):
                if pod.name not in self._logs:
                    self._logs[pod.name] = PodLog(self._cluster, self._namespace, self._see_line)
                self._logs[pod.name].show(pod)
        if change.listed:
            self._pods.only({found["metadata"]["uid"] for found in mine})

    def _belongs(self, pod: Object) -> bool:
        """Whether a pod is of this job and not of an earlier one with its name."""
        if self._kind.owns_pods:
            owners = pod["metadata"].get("ownerReferences") or []
            return any(owner.get("uid") == self._job["metadata"]["uid"] for owner in owners)
        made, job_made = (each["metadata"].get("creationTimestamp") or "" for each in (pod, self._job))
        return bool(made >= job_made)

    def _see_line(self, pod: str, line: str) -> None:
        with self._lock:
            self._lines.setdefault(pod, deque(maxlen=_LAST_LINES)).append(line)
            if (match := _NUMBER.fullmatch(line)) is not None:
                self._metrics[match[1]] = float(match[2])
                self._on_metric(line)
                return
            if (match := _TEXT.fullmatch(line)) is not None:
                self._outputs[match[1]] = match[2]
            log.info("%s | %s", pod, line)

    def _outcome(self, seconds: float) -> Outcome:
        status = self._job.get("status") or {}
        began, ended = parse_time(status.get("startTime")), parse_time(status.get("completionTime"))
        if began is not None and ended is not None:
            seconds = (ended - began).total_seconds()
        outcome = Outcome(self.verdict, seconds, self._pods.restarts)
        if self._kind.retries:
            outcome.restarts += max((status.get("failed") or 0) - (self.verdict.state == "Failed"), 0)
        with self._lock:
            outcome.metrics, outcome.outputs = dict(self._metrics), dict(self._outputs)
        metrics, outputs = best_trial(self._job)
        outcome.metrics.update(metrics)
        outcome.outputs.update(outputs)
        if self.verdict.state == "Failed" and (failure := self._failure()) is not None:
            outcome.failure = failure
            outcome.last_lines = list(self._lines.get(failure.pod) or self._tail(failure))
        return outcome

    def _failure(self) -> Exit | None:
        return self._pods.failure(last=self._kind.retries)

    def _tail(self, failure: Exit) -> list[str]:
        """The last lines of a container whose log was not followed, if its pod is still there."""
        query = {"container": failure.container, "tailLines": str(_LAST_LINES)}
        try:
            request = Request("get", PODS, self._namespace, failure.pod, "log", query)
            answer = self._cluster.stream(request, silence_s=self._cluster.timing.answer_s)
            return [line.decode(errors="replace").rstrip("\n") for line in answer.lines()]
        except Exception as error:  # a message is not worth another failure
            log.debug("no log of %s: %s", failure.pod, error)
            return failure.message.splitlines()[-_LAST_LINES:]

    def _too_late(self, timeout_s: float) -> str:
        end = f"{self._what}: not done after {timeout_s:g} s, its last condition is {self.verdict}"
        return "; ".join([end, *(self._pods.waiting()[:3] or self._warnings())])

    def _warnings(self) -> list[str]:
        """What the job's events say where there are no pods: a quota, a security policy, no operator."""
        if self._pods.by_uid or not self._kind.job_label:
            return []
        selectors = {"fieldSelector": f"involvedObject.name={self.name},type=Warning"}
        try:
            events = self._cluster.list(EVENTS, self._namespace, selectors)["items"]
        except MlcoreError as error:
            log.debug("no events of %s: %s", self._what, error)
            events = []
        texts = [f"{event.get('reason')}: {event.get('message')}" for event in events]
        return ["it has no pods", *(texts[-1:] or ["no event tells why; is its operator running?"])]
