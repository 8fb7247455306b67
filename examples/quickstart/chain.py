"""Runs steps as a user would: each is a process of the `mlcore` command, shown before it runs."""

import contextlib
import functools
import http.server
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

GRACE_S = 12.0  # a step ends within 10 s after SIGTERM or Ctrl-C
_LINE = 110  # columns after which a shown command is broken


class StepFailed(Exception):
    """A step ended with a code other than 0."""

    def __init__(self, name: str, code: int) -> None:
        super().__init__(f"mlcore {name} ended with {code}")
        self.code = code if code > 0 else 128 - code


class Chain:
    """Steps one after the other, with the seconds that each took.

    Attributes:
        seconds: Name -> seconds, of what ran so far.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        own = Path(sys.executable).with_name("mlcore")
        self._program = [str(own)] if own.exists() else [sys.executable, "-m", "mlcore"]

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Counts the seconds of the block as those of `name`."""
        started = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - started

    def run(self, step: str, *flags: str) -> dict[str, str]:
        """Runs `mlcore <step> <flags>` and returns its results, which are shown at its end.

        Raises:
            StepFailed: It ended with a code other than 0.
        """
        say(f"\n{bold('$ ' + shown(['mlcore', step, *flags]))}")
        results: dict[str, str] = {}
        with self.timed(step), _process([*self._program, step, *flags]) as process:
            assert process.stdout is not None
            for line in process.stdout:
                # "2026-01-31T12:00:00Z ap50=0.930000" or "output_dir=build/x"; of those that repeat the last counts
                name, equals, value = line.strip().rpartition("Z ")[2].partition("=")
                if equals:
                    results[name] = value
            code = process.wait()
        for name, value in results.items():
            say(f"  {name}={value}")
        if code != 0:
            raise StepFailed(step, code)
        return results


@contextlib.contextmanager
def _process(command: list[str]) -> Iterator["subprocess.Popen[str]"]:
    """A process in its own group, so that a Ctrl-C reaches it once, from here; nothing of it is left behind."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, process_group=0)
    try:
        yield process
    except BaseException as error:
        code = getattr(error, "exit_code", None)
        number = signal.SIGINT if code == 128 + signal.SIGINT else signal.SIGTERM
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)
        raise
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[str]:
    """A server of the files in a folder, on this machine alone; its address."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            """Says nothing: the step that asks has a log of its own."""

    handler = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def shown(command: list[str]) -> str:
    """A command as one would type it, broken where it is long."""
    words = [shlex.quote(word) for word in command]
    if len(" ".join(words)) <= _LINE:
        return " ".join(words)
    return " ".join(words[:2]) + "".join(f" \\\n      {word}" for word in words[2:])


def bold(text: str) -> str:
    """Bold on a terminal."""
    return f"\x1b[1m{text}\x1b[0m" if sys.stdout.isatty() else text


def say(text: str) -> None:
    """A line on stdout, at once."""
    print(text, flush=True)
