"""The chief's eye on its servers: a thread that asks parameter servers and workers whether they are there.

TensorFlow tells of a dead parameter server by an error in the next operation, of a stopped one never, and an operation
that waits for it cannot be interrupted. So this thread decides: a parameter server that is gone makes the run end
with 138, if need be by ending the process.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from mlcore.cluster.config import Member
from mlcore.cluster.peers import REFUSED, SILENT, describe, troubles_with
from mlcore.runtime.ending import end_process
from mlcore.runtime.errors import RestartError

log = logging.getLogger(__name__)

_POLL_INTERVAL_S = 1.0
_WORKER_INTERVAL_S = 5
# A closed port seen twice means that the process is gone: starting TensorFlow again takes longer than that.
_REFUSED_S = 1.5
# Silence can be a machine under load.
SILENT_S = 15.0
# A stopped worker and a main thread that does nothing for so long: it waits for that worker.
_HANG_S = 45.0
# Time for the main thread to end by itself.
_EXIT_GRACE_S = 10.0


class PeerGuard:
    """Watches the servers of a cluster from `start` to `stop`.

    Args:
        servers: Parameter servers, or others that train in step: the run cannot go on without any of them.
        workers: Workers: the run can go on without some.
        on_exit: Called before the process is ended by force.
    """

    def __init__(
        self,
        servers: Sequence[Member],
        workers: Sequence[Member],
        on_exit: Callable[[RestartError], None] | None = None,
    ) -> None:
        self._servers, self._workers, self._on_exit = servers, workers, on_exit
        self._since: dict[Member, tuple[float, str]] = {}
        self._lost: RestartError | None = None
        self._deadline: tuple[float, str] | None = None
        self._main_seen = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peer-guard", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def stop(self) -> None:
        """Watch no longer."""
        self._stop.set()

    def release_servers(self) -> None:
        """Everything is saved: what happens to the parameter servers does not matter any more."""
        self._servers, self._lost = (), None

    @contextlib.contextmanager
    def bounded(self, timeout_s: float, what: str) -> Iterator[None]:
        """End the process with 138 where the block takes longer: for calls into TensorFlow that have no time-out."""
        self._deadline = time.monotonic() + timeout_s, f"{what} has not ended within {timeout_s:.0f} s"
        try:
            yield
        finally:
            self._deadline = None

    def check(self) -> None:
        """Raise where a parameter server is gone. The main thread calls this whenever it does not wait for TensorFlow.

        Raises:
            RestartError: Names it.
        """
        self._main_seen = time.monotonic()
        if self._lost is not None:
            raise self._lost

    def missing_for(self, member: Member) -> float:
        """Seconds since which a member does not answer; 0 where it does."""
        since = self._since.get(member)
        return time.monotonic() - since[0] if since else 0.0

    def trouble(self, member: Member) -> str:
        """Why a member does not answer; empty where it does."""
        since = self._since.get(member)
        return since[1] if since else ""

    def diagnose(self) -> str:
        """Ask all servers and workers now; who does not answer and why, or empty."""
        return describe(troubles_with([*self._servers, *self._workers]))

    def _watch(self) -> None:
        rounds, lost_at = 0, 0.0
        while not self._stop.wait(_POLL_INTERVAL_S):
            asked = [*self._servers, *(self._workers if rounds % _WORKER_INTERVAL_S == 0 else ())]
            rounds += 1
            troubles = troubles_with(asked)
            now = time.monotonic()
            for member in asked:
                if member in troubles:
                    first, _ = self._since.get(member, (now, ""))
                    self._since[member] = first, troubles[member]
                elif member in self._since:
                    del self._since[member]
            if self._lost is None:
                self._lost, lost_at = self._who_is_lost(now), now
            elif now - lost_at >= _EXIT_GRACE_S and not self._stop.is_set():
                self._end_process(self._lost)
            self._end_where_it_hangs(now)
            deadline = self._deadline
            if deadline is not None and now >= deadline[0]:
                self._end_process(RestartError(f"{deadline[1]}: {self.diagnose() or 'all members answer'}"))

    def _end_where_it_hangs(self, now: float) -> None:
        """A new function of TensorFlow goes to all members before it runs, and waits for one that is stopped."""
        if now - self._main_seen < _HANG_S:
            return
        silent = {
            worker: trouble
            for worker, (since, trouble) in self._since.items()
            if worker in self._workers and trouble == SILENT and now - since >= _HANG_S
        }
        if silent:
            self._end_process(RestartError(f"the chief waits for a member that does not answer: {describe(silent)}"))

    def _who_is_lost(self, now: float) -> RestartError | None:
        for server in self._servers:
            since, trouble = self._since.get(server, (now, ""))
            bound_s = _REFUSED_S if trouble == REFUSED else SILENT_S
            if trouble and now - since >= bound_s:
                return RestartError(f"{server.name} is lost: {trouble}; the run goes on from the last checkpoint")
        return None

    def _end_process(self, error: RestartError) -> None:
        if self._on_exit is not None:
            self._on_exit(error)
        log.error("%s; the main thread waits for it in vain, so the process ends here", error)
        end_process(error.exit_code)
