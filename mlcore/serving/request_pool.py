"""Threads that wait for answers, a bounded number of them.

Not a ThreadPoolExecutor: its threads are waited for at the end of the process, and a request that hangs would hold up a
step that was asked to stop. These are daemons.
"""

import queue
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, wait
from typing import Any, TypeVar

from mlcore.runtime.signals import join, wait_until

T = TypeVar("T")
R = TypeVar("R")


class RequestPool:
    """Runs functions in at most `size` threads, which start when they are needed."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._work: queue.SimpleQueue[tuple[Future[Any], Callable[[Any], Any], Any] | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []

    def each(self, function: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """The function over all items, in their order, several at a time; the first error ends it."""
        futures: list[Future[R]] = []
        for item in items:
            futures.append(Future())
            self._work.put((futures[-1], function, item))
        for _ in range(min(self._size, len(futures)) - len(self._threads)):
            self._threads.append(threading.Thread(target=self._run, name="request", daemon=True))
            self._threads[-1].start()
        try:
            return [_result(future) for future in futures]
        except BaseException:
            for future in futures:
                future.cancel()
            raise

    def close(self, *, wait: bool) -> None:
        """Let the threads end; if `wait`, after the answers that they wait for."""
        for _ in self._threads:
            self._work.put(None)
        for thread in self._threads if wait else ():
            join(thread)

    def _run(self) -> None:
        while (task := self._work.get()) is not None:
            future, function, item = task
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(function(item))
            except BaseException as error:  # whatever it is, it belongs to who asked
                future.set_exception(error)


def _result(future: Future[R]) -> R:
    wait_until(lambda timeout_s: wait([future], timeout_s).done)
    return future.result()
