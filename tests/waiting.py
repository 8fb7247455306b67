"""Waiting for what another thread or process does."""

import threading
import time
from collections.abc import Callable


def wait_until(condition: Callable[[], object], timeout_s: float = 20) -> None:
    """Wait until something holds."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"not within {timeout_s:g} s"
        time.sleep(0.02)


def when(condition: Callable[[], object], action: Callable[[], object]) -> None:
    """Do something in a thread of its own as soon as something holds."""

    def run() -> None:
        wait_until(condition)
        action()

    threading.Thread(target=run, daemon=True).start()
