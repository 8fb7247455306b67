"""Who runs what: an account of the closures of a ClusterCoordinator, worker by worker.

TensorFlow's `schedule` and `join` do not tell which worker has taken a closure, since when, or whether it was run again
elsewhere; so nobody can name a stopped worker, leave one out, or show how the work was shared. The one place where
all of that passes by is the coordinator's queue, whose `get` each worker's thread calls for its next closure. The
ledger stands in front of that queue. (Internals of TensorFlow 2.20; the tests of this package fail when they change.)
"""

import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(eq=False)
class Work:
    """A closure on its way.

    Attributes:
        value: TensorFlow's RemoteValue of its result.
        steps: Training steps in it.
        worker: Index of the worker that has it; None while it waits in the queue.
        taken_at: When that worker took it (monotonic seconds).
        written_off: Whether the loop goes on without it.
    """

    value: Any
    steps: int
    worker: int | None = None
    taken_at: float = 0.0
    written_off: bool = False
    scheduled_at: float = field(default_factory=time.monotonic)


class Ledger:
    """Stands in front of the queue of a `ClusterCoordinator` and keeps the account.

    Attributes:
        steps_by_worker: Steps that each worker has finished.
        changed: Condition that is notified when a closure is finished or has failed.
    """

    def __init__(self, coordinator: Any) -> None:
        self._queue = coordinator._cluster.closure_queue
        self.changed = threading.Condition()
        self.steps_by_worker: Counter[int] = Counter()
        self._open: list[Work] = []
        self._finished: list[Work] = []
        self._at_work: dict[int, Work | None] = {}
        self._held_back: set[int] = set()
        self._idle_behind_gate: set[int] = set()
        self._error: BaseException | None = None
        self._get, self._mark_finished = self._queue.get, self._queue.mark_finished
        self._mark_failed, self._put_back = self._queue.mark_failed, self._queue.put_back
        self._queue.get, self._queue.mark_finished = self.get, self.mark_finished
        self._queue.mark_failed, self._queue.put_back = self.mark_failed, self.put_back
        self._thread = threading.local()

    # What the threads of the workers call.

    def get(self, timeout: float | None = None, tag: int | None = None) -> Any:
        """The next closure for worker `tag`; waits while the worker is held back."""
        assert tag is not None
        self._thread.tag = tag
        while True:
            with self.changed:
                self._at_work[tag] = None
                while tag in self._held_back:
                    self._idle_behind_gate.add(tag)
                    self.changed.notify_all()
                    self.changed.wait()
                self._idle_behind_gate.discard(tag)
            closure = self._get(timeout=0.25, tag=tag)  # so that a worker that is idle can be held back, too
            if closure is not None or timeout is not None or not self._queue._should_process_closures:
                break
        with self.changed:
            work = self._work_of(closure)
            self._at_work[tag] = work
            if work is not None:
                work.worker, work.taken_at = tag, time.monotonic()
        return closure

    def mark_finished(self) -> None:
        """The closure that this thread took is through."""
        self._mark_finished()
        with self.changed:
            work = self._at_work.get(self._thread.tag)
            if work is not None:
                self._at_work[self._thread.tag] = None
                self.steps_by_worker[self._thread.tag] += work.steps
                if work in self._open:
                    self._open.remove(work)
                    self._finished.append(work)
            self.changed.notify_all()

    def mark_failed(self, error: BaseException) -> None:
        """A closure failed in a way that another worker would not help."""
        with self.changed:
            self._error = self._error or error
            self.changed.notify_all()
        self._mark_failed(error)

    def put_back(self, closure: Any) -> None:
        """A closure's worker is lost: another one will take it."""
        with self.changed:
            work = self._work_of(closure)
            if work is not None:
                work.worker, work.taken_at, work.scheduled_at = None, 0.0, time.monotonic()
        self._put_back(closure)

    def _work_of(self, closure: Any) -> Work | None:
        reference = getattr(closure, "_output_remote_value_ref", None)
        value = reference() if reference is not None else None
        return next((work for work in self._open if work.value is value), None) if value is not None else None

    # What the loop calls.

    def add(self, schedule: Any, steps: int) -> Work:
        """Schedule a closure of some steps by calling `schedule`, and put it on the account.

        Raises:
            BaseException: What an earlier closure raised.
        """
        with self.changed:  # no worker can take it before it is written down
            # After an error TensorFlow's schedule would wait for all closures, those of a stopped worker too.
            self._raise_error()
            work = Work(schedule(), steps)
            self._open.append(work)
            return work

    def take_news(self) -> tuple[list[Work], list[Work]]:
        """Closures that were finished since the last call, and those that are still open: each is in one of the two.

        Raises:
            BaseException: What a closure raised.
        """
        with self.changed:
            self._raise_error()
            finished, self._finished = self._finished, []
            return finished, list(self._open)

    def has_news(self) -> bool:
        """Whether `take_news` has something to tell; call it with `changed` held."""
        return bool(self._finished) or self._error is not None

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def hold_back(self, workers: Sequence[int]) -> None:
        """Give these workers nothing more, and all the others something again."""
        with self.changed:
            if set(workers) != self._held_back:
                self._held_back = set(workers)
                self.changed.notify_all()

    def is_idle(self, worker: int) -> bool:
        """Whether a worker that is held back has finished what it had."""
        with self.changed:
            return worker in self._idle_behind_gate
