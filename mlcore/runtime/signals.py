"""SIGTERM and Ctrl-C: an exception in the main thread, or a flag where a step must not be torn in the middle."""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

from mlcore.runtime.errors import Stopped

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)

# The kernel may give a signal to another thread, for instance one that starts or ends just then. Python's handler still
# runs in the main thread, but one that waits for a lock is not woken for it: so it has to wake by itself.
_WAKE_S = 0.25


def _raise(signal_number: int, _frame: FrameType | None) -> None:
    raise Stopped(signal_number)


def raise_on_stop() -> None:
    """From now on SIGTERM and SIGINT raise `Stopped` in the main thread.

    A handler of our own is also what makes SIGTERM work for PID 1 of a container, where the kernel ignores the default.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, _raise)


def wait_until(done: Callable[[float], object]) -> None:
    """Wait, however long it takes, and answer signals meanwhile.

    Args:
        done: Waits for so many seconds at most, and tells whether it is done: such as `wait` of an event.
    """
    while not done(_WAKE_S):
        pass


def join(thread: threading.Thread) -> None:
    """Wait for the end of a thread, and answer signals meanwhile."""
    while thread.is_alive():
        thread.join(_WAKE_S)


class StopFlag:
    """Set when the process was asked to stop."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self.signal_number: int = signal.SIGTERM

    def set(self, signal_number: int) -> None:
        """Ask for a stop, as the signal does."""
        self.signal_number = signal_number
        self._event.set()

    def is_set(self) -> bool:
        """Whether a stop was asked for."""
        return self._event.is_set()

    def wait(self, timeout_s: float) -> bool:
        """Sleep until a stop is asked for, `timeout_s` seconds at most; whether it was."""
        end = time.monotonic() + timeout_s
        wait_until(lambda wake_s: self._event.wait(min(wake_s, end - time.monotonic())) or time.monotonic() >= end)
        return self.is_set()

    @contextlib.contextmanager
    def raising(self) -> Iterator[None]:
        """Inside the block a signal raises at once: for work that may be torn, as it changes nothing that is kept.

        Raises:
            Stopped: Asked for before or inside the block.
        """
        if self.is_set():
            raise self.error()
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, _raise) for number in STOP_SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def error(self) -> Stopped:
        """The exception to raise once everything is saved."""
        return Stopped(self.signal_number)


@contextlib.contextmanager
def stop_flag() -> Iterator[StopFlag]:
    """Inside the block SIGTERM and SIGINT set a flag instead of raising; a second SIGINT raises.

    Outside the main thread, where Python allows no handlers, the flag is never set by a signal.
    """
    flag = StopFlag()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return

    def on_signal(signal_number: int, _frame: FrameType | None) -> None:
        if flag.is_set() and signal_number == signal.SIGINT:
            raise Stopped(signal_number)
        flag.set(signal_number)

    before = {number: signal.signal(number, on_signal) for number in STOP_SIGNALS}
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
