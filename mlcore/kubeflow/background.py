"""Work that a signal can leave at once, whatever it waits for."""

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from mlcore.runtime.signals import wait_until

R = TypeVar("R")


class Background(Generic[R]):
    """A function that runs in a thread of its own, which ends with the process.

    The main thread only waits: so SIGTERM is answered at once even while the work is in a call that cannot be
    interrupted, such as looking up a name.

    Args:
        work: The function.
    """

    def __init__(self, work: Callable[[], R]) -> None:
        self._done = threading.Event()
        self._results: list[R] = []
        self._error: BaseException | None = None
        threading.Thread(target=self._run, args=(work,), daemon=True).start()

    def _run(self, work: Callable[[], R]) -> None:
        try:
            self._results.append(work())
        except BaseException as error:
            self._error = error
        finally:
            self._done.set()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for the end; whether it came in time."""
        return self._done.wait(timeout_s)

    def result(self) -> R:
        """What the function returned; its error is raised here."""
        wait_until(self._done.wait)
        if self._error is not None:
            raise self._error
        return self._results[0]
