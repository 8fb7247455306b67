"""What containers print, line by line, with the name of their pod before each line."""

import contextlib
import subprocess
import sys
import threading
from typing import IO

from mlcore.kubeflow.local.engine import Engine

_LAST_LINES_S = 10.0


class Console:
    """Our own stdout and stderr, shared by all pods.

    Args:
        width: Of the longest pod's name.
    """

    def __init__(self, width: int) -> None:
        self._width, self._lock = width, threading.Lock()

    def write(self, name: str, line: str, stream: IO[str]) -> None:
        """One line of one pod."""
        with self._lock:
            print(f"{name:{self._width}} | {line}", file=stream, flush=True)


class Follower:
    """Prints what a container prints until it ends: its stdout on ours, its stderr on ours.

    Args:
        engine: The engine.
        container: Name of the container.
        name: Of the pod.
        console: Where to print.
        since: Only what was printed later than so many seconds after 1970.
    """

    def __init__(self, engine: Engine, container: str, name: str, console: Console, since: float = 0) -> None:
        self._name, self._console = name, console
        self._process = subprocess.Popen(
            [engine.command, "logs", "--follow", *([f"--since={since:.3f}"] if since else []), container],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, errors="replace", start_new_session=True,
        )  # fmt: skip
        self._readers = [
            threading.Thread(target=self._copy, args=pair, name=f"logs of {container}", daemon=True)
            for pair in ((self._process.stdout, sys.stdout), (self._process.stderr, sys.stderr))
        ]
        for reader in self._readers:
            reader.start()

    def _copy(self, source: IO[str], stream: IO[str]) -> None:
        for line in source:
            # Our reader may be gone (`| head`); the rest is still taken, or the container could not go on.
            with contextlib.suppress(OSError, ValueError):
                self._console.write(self._name, line.rstrip("\n"), stream)

    def wait(self) -> None:
        """Return when the container has ended, or nothing more is to be had of it."""
        self._process.wait()
        for reader in self._readers:
            reader.join(_LAST_LINES_S)

    def close(self) -> None:
        """Print no more."""
        self._process.kill()
        self._process.wait()
