"""The server as a process of its own, and what a test asks it."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

READY_S = 60.0


@dataclass
class Reply:
    """An HTTP answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Server:
    """`mlcore serve` for one model."""

    name: str
    models_dir: Path
    log: Path
    flags: tuple[str, ...] = ()
    ports: tuple[int, int, int] = (0, 0, 0)
    process: "subprocess.Popen[bytes] | None" = field(default=None, repr=False)

    def start(self) -> "Server":
        environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "2"}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)  # it doubles the time of TensorFlow's import
        command = [
            sys.executable, "-m", "mlcore", "serve", f"--model-name={self.name}", f"--models-dir={self.models_dir}",
            *(f"--{flag}-port={port}" for flag, port in zip(("http", "grpc", "tfs"), self.ports, strict=True)),
            "--host=127.0.0.1", "--poll-interval-s=0.2", *self.flags,
        ]  # fmt: skip
        with self.log.open("ab") as log:
            start = log.tell()
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        end = time.monotonic() + READY_S
        while True:
            text = self.log.read_text()[start:]
            if match := re.search(r"listening: HTTP (\d+), V2 gRPC (\d+), TensorFlow Serving gRPC (\d+)", text):
                self.ports = (int(match[1]), int(match[2]), int(match[3]))
                return self
            assert self.process.poll() is None and time.monotonic() < end, text
            time.sleep(0.05)

    def wait_until(self, condition: Any, timeout_s: float = READY_S) -> None:
        """Wait for something to become true of the server."""
        end = time.monotonic() + timeout_s
        while not condition():
            assert self.process is not None and self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < end, f"not within {timeout_s} s\n{self.log.read_text()}"
            time.sleep(0.05)

    def wait_ready(self, timeout_s: float = READY_S) -> "Server":
        self.wait_until(lambda: self.get("/v2/health/ready").status == 200, timeout_s)
        return self

    def wait_version(self, *versions: int) -> "Server":
        """Wait until exactly these versions are served."""
        self.wait_until(lambda: self.versions() == list(versions))
        return self

    def versions(self) -> list[int]:
        """The versions that answer, the highest first."""
        states = self.get(f"/v1/models/{self.name}").json["model_version_status"]
        return [int(state["version"]) for state in states if state["state"] == "AVAILABLE"]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.ports[0]}"

    @property
    def grpc_address(self) -> str:
        return f"127.0.0.1:{self.ports[1]}"

    @property
    def tfs_address(self) -> str:
        return f"127.0.0.1:{self.ports[2]}"

    def get(self, path: str) -> Reply:
        return self.request(path)

    def post(self, path: str, body: Any, **headers: str) -> Reply:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.request(path, data, {"content-type": "application/json", **headers})

    def request(self, path: str, data: bytes | None = None, headers: dict[str, str] | None = None) -> Reply:
        request = urllib.request.Request(self.url + path, data, headers or {})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return Reply(answer.status, dict(answer.headers), answer.read())
        except urllib.error.HTTPError as error:
            return Reply(error.code, dict(error.headers), error.read())

    def predict(self, instances: Any, version: int | None = None, **headers: str) -> Reply:
        part = "" if version is None else f"/versions/{version}"
        return self.post(f"/v1/models/{self.name}{part}:predict", {"instances": instances}, **headers)

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric over all its series with these labels."""
        total = 0.0
        for line in self.get("/metrics").body.decode().splitlines():
            match = re.match(r"(\w+)(?:\{(.*)\})? (\S+)$", line)
            if match and match[1] == name:
                found = dict(re.findall(r'(\w+)="([^"]*)"', match[2] or ""))
                if labels.items() <= found.items():
                    total += float(match[3])
        return total

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait for the end; the exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(30)


@contextlib.contextmanager
def serving(models_dir: Path, log: Path, *flags: str, name: str = "mnist") -> Iterator[Server]:
    """A server, which is gone at the end."""
    server = Server(name, models_dir, log, flags)
    try:
        yield server.start()
    finally:
        if server.process is not None and server.process.poll() is None:
            server.process.kill()
            server.process.wait()
