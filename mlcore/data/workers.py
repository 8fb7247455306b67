"""Worker processes that keep what they learned between one round of tasks and the next.

Each task always goes to the same worker, so that what a worker read in the first round (parsed annotations) need not be
read or sent again in the second. `concurrent.futures` has no such affinity, and cannot end its processes at once.
"""

import ctypes
import os
import signal
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from mlcore.runtime.errors import MlcoreError, TransientError

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

_PR_SET_PDEATHSIG = 1
_END_TIMEOUT_S = 3.0


class Workers:
    """A handler in each of several processes, or one in this process; a context manager.

    Args:
        handler: Makes the handler, called once in each process. Its methods take the arguments of a task and a function
            that reports progress. It, the arguments and the results must be picklable.
        count: Processes; with 1 the work is done in this one.
    """

    def __init__(self, handler: Callable[[], Any], count: int) -> None:
        self._handler = handler
        self._local: Any = handler() if count == 1 else None
        self._processes: list[Any] = []
        self._connections: list[Connection] = []
        self.count = count

    def __enter__(self) -> Self:
        if self.count > 1:
            import multiprocessing  # late: one process needs none of it

            # A fork is faster by the start of an interpreter, but copies locks that other threads may hold.
            safe = threading.active_count() == 1 and "tensorflow" not in sys.modules
            context = multiprocessing.get_context("fork" if safe and sys.platform == "linux" else "spawn")
            for _ in range(self.count):
                ours, theirs = context.Pipe()
                process = context.Process(  # type: ignore[attr-defined]
                    target=_serve, args=(theirs, self._handler, os.getpid()), daemon=True
                )
                process.start()
                theirs.close()
                self._processes.append(process)
                self._connections.append(ours)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for connection in self._connections:
            connection.close()
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.join(_END_TIMEOUT_S)
            if process.is_alive():
                process.kill()
                process.join()

    def run(
        self, method: str, tasks: Sequence[tuple[Any, ...]], progress: Callable[[int], None] = lambda amount: None
    ) -> Iterator[tuple[int, Any]]:
        """Call `handler.method(*task, report)` for each task; yields (index of the task, result) as they end.

        Task i runs in worker i modulo the number of workers, in every round.

        Raises:
            TransientError: A worker was killed.
            MlcoreError: What a task raised.
        """
        if self._local is not None:
            for index, task in enumerate(tasks):
                yield index, getattr(self._local, method)(*task, progress)
            return
        from multiprocessing.connection import Connection, wait

        waiting: list[deque[int]] = [deque(range(worker, len(tasks), self.count)) for worker in range(self.count)]
        busy: dict[Connection, int] = {}

        def start_next(worker: int) -> None:
            if waiting[worker]:
                index = waiting[worker].popleft()
                try:
                    self._connections[worker].send((index, method, tasks[index]))
                except OSError as error:
                    raise self._lost(worker) from error
                busy[self._connections[worker]] = worker

        for worker in range(self.count):
            start_next(worker)
        while busy:
            for ready in wait(list(busy)):
                assert isinstance(ready, Connection)
                worker = busy[ready]
                try:
                    kind, index, value = ready.recv()
                except (EOFError, OSError) as error:
                    raise self._lost(worker) from error
                if kind == "progress":
                    progress(value)
                elif kind == "error":
                    raise value
                else:
                    del busy[ready]
                    start_next(worker)
                    yield index, value

    def _lost(self, worker: int) -> TransientError:
        process = self._processes[worker]
        process.join(_END_TIMEOUT_S)
        code = process.exitcode
        how = f"was killed by {signal.Signals(-code).name}" if code and code < 0 else f"ended with {code}"
        return TransientError(f"worker process {process.pid} {how}; is there enough memory for --workers={self.count}?")


def _serve(connection: "Connection", make_handler: Callable[[], Any], parent: int) -> None:
    """Main loop of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent ends us
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if sys.platform == "linux":  # end with the parent, even if that was killed
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    handler = make_handler()

    def report(amount: int) -> None:
        connection.send(("progress", 0, amount))

    while True:
        try:
            index, method, arguments = connection.recv()
        except (EOFError, OSError):
            return
        try:
            message = ("result", index, getattr(handler, method)(*arguments, report))
        except MlcoreError as error:
            message = ("error", index, error)
        except Exception as error:
            message = ("error", index, RuntimeError(f"in a worker process: {error!r}\n{traceback.format_exc()}"))
        try:
            connection.send(message)
        except OSError:
            return
