"""The log of a container while it is written, each line once, however often the connection breaks."""

import logging
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta

from mlcore.kubeflow.answers import Missing, NotStarted, Request
from mlcore.kubeflow.cluster import PODS, Cluster
from mlcore.kubeflow.job_pods import Pod
from mlcore.runtime.errors import MlcoreError, TransientError

log = logging.getLogger(__name__)

# The kubelet puts the time in front of each line, in its own zone: 2026-11-24T14:44:03.123456789Z text
_STAMP = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d+)?(Z|[+-]\d\d:\d\d) ?")


class PodLog:
    """Follows the logs of the pods that have one name, one after another, in a thread of its own.

    A connection that breaks is taken up a second before the newest line, since the lines of a container's two streams
    come a little out of order; what the server then sends again is left out.
    The server knows logs by the pod's name alone, so a pod that is made anew under it goes on where the last one ended.

    Args:
        cluster: Where.
        namespace: Namespace of the pods.
        on_line: Called with the pod's name and each line, without its time.
    """

    def __init__(self, cluster: Cluster, namespace: str, on_line: Callable[[str, str], object]) -> None:
        self._cluster, self._namespace, self._on_line = cluster, namespace, on_line
        self._newest = ""  # second of the newest line
        self._since = ""  # the second before it
        self._seen: dict[str, Counter[bytes]] = {}  # second -> its lines, of these two
        self._job_over = threading.Event()
        self._lock = threading.Lock()
        self._pod: Pod | None = None
        self._thread: threading.Thread | None = None

    def show(self, pod: Pod) -> None:
        """Show the log of this pod, whose `is_over` tells that nothing more will come."""
        with self._lock:
            if self._pod is pod:
                return
            self._pod = pod
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="pod-log", daemon=True)
                self._thread.start()

    def finish(self, timeout_s: float) -> None:
        """Wait for the rest, now that the job has ended, that long at most."""
        self._job_over.set()
        with self._lock:
            thread = self._thread
        if thread is not None:
            thread.join(timeout_s)

    def _run(self) -> None:
        while True:
            with self._lock:
                pod = self._pod
            assert pod is not None
            try:
                self._follow(pod)
            except MlcoreError as error:
                log.warning("the log of %s is not shown further: %s", pod.name, error)
            with self._lock:
                if self._pod is pod:
                    self._thread = None
                    return

    def _is_over(self, pod: Pod) -> bool:
        return pod.is_over or self._pod is not pod or self._job_over.is_set()

    def _follow(self, pod: Pod) -> None:
        """Show the log of one pod, until all of it was shown.

        Raises:
            MlcoreError: The server refuses, or does not answer any more.
        """
        timing = self._cluster.timing
        failing_since: float | None = None
        wait_s = timing.log_poll_s
        while True:
            over = self._is_over(pod)
            try:
                self._read(pod, follow=not over)
                failing_since, wait_s = None, timing.log_poll_s
                if over:
                    return
            except Missing:
                return
            except NotStarted:
                if over:
                    return
            except TransientError as error:
                failing_since = failing_since or time.monotonic()
                if time.monotonic() - failing_since > timing.outage_s:
                    raise
                log.info("%s; asking for the log of %s again", error, pod.name)
                wait_s = min(2 * wait_s, timing.backoff_max_s)
            if over or not self._is_over(pod):
                time.sleep(wait_s)

    def _read(self, pod: Pod, *, follow: bool) -> None:
        """Read until the server ends the log.

        Raises:
            MlcoreError: The server refuses, or the connection broke.
        """
        timing = self._cluster.timing
        query = {"container": pod.container, "timestamps": "true"}
        if follow:
            query["follow"] = "true"
        if self._since:
            query["sinceTime"] = self._since
        request = Request("get", PODS, self._namespace, pod.name, "log", query)
        answer = self._cluster.stream(request, silence_s=timing.log_silence_s if follow else timing.answer_s)
        again = sum(self._seen.values(), Counter[bytes]())
        for line in answer.lines():
            if not line.endswith(b"\n") and follow:
                return  # perhaps cut in the middle: the last reading shows it whole
            self._take(pod, line.rstrip(b"\n"), again)

    def _take(self, pod: Pod, line: bytes, again: "Counter[bytes]") -> None:
        stamp = _STAMP.match(line)
        if stamp is None:
            self._on_line(pod.name, line.decode(errors="replace"))
            return
        if again[line]:
            again[line] -= 1
            return
        second = (stamp[1] + stamp[3]).decode()
        if second > self._newest:
            before = datetime.fromisoformat(second) - timedelta(seconds=1)
            self._newest, self._since = second, before.isoformat().replace("+00:00", "Z")
            self._seen = {each: lines for each, lines in self._seen.items() if each >= self._since}
        if second >= self._since:
            self._seen.setdefault(second, Counter())[line] += 1
        self._on_line(pod.name, line[stamp.end() :].decode(errors="replace"))
