"""A cluster of real processes on loopback, as the training operator would start them."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


class LocalCluster:
    """Members of one TFJob as processes; each one's output is in `<folder>/<role>-<index>.log`."""

    def __init__(
        self,
        folder: Path,
        command: Sequence[str],
        *,
        workers: int = 2,
        ps: int = 2,
        chief: bool = True,
        evaluator: bool = True,
    ) -> None:
        counts = {"chief": int(chief), "worker": workers, "ps": ps, "evaluator": int(evaluator)}
        ports = iter(free_ports(sum(counts.values())))
        self.addresses = {
            role: [f"127.0.0.1:{next(ports)}" for _ in range(count)] for role, count in counts.items() if count
        }
        self.folder, self.command = folder, list(command)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.codes: dict[str, int] = {}
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def names(self) -> list[str]:
        return [f"{role}-{index}" for role, addresses in self.addresses.items() for index in range(len(addresses))]

    def tf_config(self, name: str) -> str:
        role, index = name.rsplit("-", 1)
        return json.dumps(
            {"cluster": self.addresses, "task": {"type": role, "index": int(index)}, "environment": "cloud"}
        )

    def start(self, *names: str, extra: Sequence[str] = ()) -> None:
        """Start members (default: all)."""
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        for name in names or self.names:
            with (self.folder / f"{name}.log").open("ab") as output:
                self.processes[name] = subprocess.Popen(
                    [*self.command, *extra],
                    stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
                    env=environment | {"TF_CONFIG": self.tf_config(name), "PYTHONUNBUFFERED": "1"},
                )  # fmt: skip

    def log(self, name: str) -> str:
        path = self.folder / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def wait_for_log(self, name: str, pattern: str, timeout_s: float = 120, *, after: int = 0) -> re.Match[str]:
        """Wait until a member's output matches."""
        end = time.monotonic() + timeout_s
        while True:
            if match := re.compile(pattern, re.DOTALL).search(self.log(name), after):
                return match
            if time.monotonic() > end or (name in self.processes and self.processes[name].poll() is not None):
                time.sleep(0.2)
                if match := re.compile(pattern, re.DOTALL).search(self.log(name), after):
                    return match
                raise AssertionError(f"{name} has not said {pattern!r}:\n{self.logs()}")
            time.sleep(0.05)

    def send(self, name: str, number: signal.Signals) -> None:
        self.processes[name].send_signal(number)

    def kill(self, name: str) -> None:
        self.processes[name].kill()
        self.processes[name].wait()

    def wait(self, name: str, timeout_s: float = 120) -> int:
        """Wait until a member has ended; its exit code."""
        try:
            return self.processes[name].wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{name} has not ended within {timeout_s} s:\n{self.logs()}") from None

    def wait_all(self, timeout_s: float = 120) -> dict[str, int]:
        end = time.monotonic() + timeout_s
        return {name: self.wait(name, max(end - time.monotonic(), 0.1)) for name in self.processes}

    def logs(self) -> str:
        return "\n".join(f"--- {name}\n{_tail(self.log(name))}" for name in self.names)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                process.kill()
        for process in self.processes.values():
            process.wait()


def _tail(text: str) -> str:
    lines = [line for line in text.splitlines() if not re.match(r"[ \t}]|[IWE]0000 |\w+.*\{$", line)]
    return "\n".join(lines[-25:])


PROGRAM = [sys.executable, str(Path(__file__).with_name("program.py"))]
