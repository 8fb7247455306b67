"""The log of a container while it is written, each line once, however often the connection breaks."""

import logging
import re
import threading
import time
from collections import Counter
from collections.abc import Callable

from mlcore.kubeflow.answers import Forbidden, Missing, NotStarted, Request
from mlcore.kubeflow.cluster import PODS, Cluster
from mlcore.kubeflow.job_pods import Pod
from mlcore.runtime.errors import MlcoreError, TransientError

log = logging.getLogger(__name__)

# The kubelet puts the time in front of each line, in its own zone: 2026-11-24T14:44:03.123456789Z text
_STAMP = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d+)?(Z|[+-]\d\d:\d\d) ?")


class PodLog:
    """Follows the log of one pod in a thread of its own.

    A connection that breaks is taken up at the second of the last line; what the server then sends again is left out.

    Args:
        cluster: Where.
        namespace: Namespace of the pod.
        pod: The pod, whose `is_over` tells that nothing more will come.
        on_line: Called with each line, without its time.
    """

    def __init__(self, cluster: Cluster, namespace: str, pod: Pod, on_line: Callable[[Pod, str], object]) -> None:
        self._cluster, self._namespace, self._pod, self._on_line = cluster, namespace, pod, on_line
        self._since = ""  # second of the newest line
        self._seen: Counter[bytes] = Counter()  # the lines of that second
        self._job_over = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def finish(self, timeout_s: float) -> bool:
        """Wait for the rest, now that the job has ended; whether it came in time."""
        self._job_over.set()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    @property
    def _is_over(self) -> bool:
        return self._pod.is_over or self._job_over.is_set()

    def _follow(self) -> None:
        timing = self._cluster.timing
        failing_since: float | None = None
        wait_s = timing.log_poll_s
        while True:
            over = self._is_over
            try:
                self._read(follow=not over)
                failing_since, wait_s = None, timing.log_poll_s
                if over:
                    return
            except Missing:
                return
            except NotStarted:
                if over:
                    return
            except Forbidden as error:
                log.warning("the log of %s is not shown: %s", self._pod.name, error)
                return
            except TransientError as error:
                failing_since = failing_since or time.monotonic()
                if time.monotonic() - failing_since > timing.outage_s:
                    log.warning("the log of %s is not shown further: %s", self._pod.name, error)
                    return
                log.info("%s; asking for the log of %s again", error, self._pod.name)
                wait_s = min(2 * wait_s, timing.backoff_max_s)
            except MlcoreError as error:
                log.warning("the log of %s is not shown: %s", self._pod.name, error)
                return
            if not self._is_over:
                self._job_over.wait(wait_s)

    def _read(self, *, follow: bool) -> None:
        """Read until the server ends the log.

        Raises:
            MlcoreError: The server refuses, or the connection broke.
        """
        timing = self._cluster.timing
        query = {"container": self._pod.container, "timestamps": "true"}
        if follow:
            query["follow"] = "true"
        if self._since:
            query["sinceTime"] = self._since
        request = Request("get", PODS, self._namespace, self._pod.name, "log", query)
        answer = self._cluster.stream(request, silence_s=timing.log_silence_s if follow else timing.answer_s)
        again = self._seen.copy()
        for line in answer.lines():
            if not line.endswith(b"\n") and follow:
                return  # perhaps cut in the middle: the last reading shows it whole
            self._take(line.rstrip(b"\n"), again)

    def _take(self, line: bytes, again: "Counter[bytes]") -> None:
        stamp = _STAMP.match(line)
        if stamp is None:
            self._on_line(self._pod, line.decode(errors="replace"))
            return
        second = (stamp[1] + stamp[3]).decode()
        if again[line]:
            again[line] -= 1
            return
        if second > self._since or not self._since:
            self._since = second
            self._seen.clear()
        # One that comes late, with an earlier second, is not sent again: the server is asked from the newest on.
        if second == self._since:
            self._seen[line] += 1
        self._on_line(self._pod, line[stamp.end() :].decode(errors="replace"))
