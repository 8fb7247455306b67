"""An API server for each test, the definitions of shared/crds, and the steps as a user runs them."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.kubeflow.api_server import ApiServer, Definitions


@pytest.fixture(scope="session")
def definitions(project: Path) -> Definitions:
    """Kubeflow's API definitions: the folder shared/crds beside the checkout, or $MLCORE_TEST_CRDS."""
    folder = Path(os.environ.get("MLCORE_TEST_CRDS") or project.parent / "shared" / "crds")
    assert folder.is_dir(), f"{folder} is missing; set MLCORE_TEST_CRDS to the folder with validate.py"
    return Definitions(folder)


@pytest.fixture
def api(definitions: Definitions) -> Iterator[ApiServer]:
    """An API server with the namespace `team` and every kind installed."""
    with ApiServer(definitions).serving() as server:
        yield server


@pytest.fixture
def kubeconfig(api: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A kubeconfig for the server, named in KUBECONFIG; nothing else says where a cluster is."""
    path = api.kubeconfig(tmp_path / "kubeconfig")
    monkeypatch.setenv("KUBECONFIG", str(path))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    return path


class Command:
    """A step in a process of its own."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mlcore", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def wait(self, timeout: float = 30) -> "subprocess.CompletedProcess[str]":
        out, err = self.process.communicate(timeout=timeout)
        return subprocess.CompletedProcess(self.process.args, self.process.returncode, out, err)

    def stop(self) -> "subprocess.CompletedProcess[str]":
        self.process.send_signal(signal.SIGTERM)
        return self.wait(12)


@pytest.fixture
def command(kubeconfig: Path) -> Iterator[Callable[..., Command]]:
    """Starts `mlcore ...`; what still runs at the end is killed."""
    started: list[Command] = []

    def start(*arguments: str) -> Command:
        started.append(Command(*arguments))
        return started[-1]

    yield start
    for each in started:
        each.process.kill()
        each.process.wait()


_waited_for: set[threading.Thread] = set()


@pytest.fixture(autouse=True)
def _no_follower_is_left():
    """A thread that follows a log whose server is gone would write into the next test's output."""
    yield
    for thread in threading.enumerate():
        # Once each: one that listens to a silent server says nothing, and does so for minutes.
        if thread.name == "pod-log" and thread not in _waited_for:
            _waited_for.add(thread)
            thread.join(4)
