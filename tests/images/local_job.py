"""Runs `mlcore local-tfjob` as a process of its own, and leaves nothing behind."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

import yaml

from tests.images.containers import docker


class LocalJob:
    """One job, whose manifest and output are in a folder.

    Args:
        folder: A folder for it.
        document: The TFJob; other documents may follow.
    """

    def __init__(self, folder: Path, *documents: dict[str, Any]) -> None:
        metadata = documents[0]["metadata"]
        self.name, self.namespace = metadata["name"], metadata.get("namespace", "default")
        self.manifest, self.out, self.err = folder / "job.yaml", folder / "stdout", folder / "stderr"
        self.manifest.write_text(yaml.safe_dump_all(documents))
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *flags: str) -> Self:
        """Begin to run it."""
        with self.out.open("wb") as out, self.err.open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mlcore", "local-tfjob", str(self.manifest), *flags],
                stdout=out, stderr=err, env={**os.environ, "PYTHONUNBUFFERED": "1"}, start_new_session=True,
            )  # fmt: skip
        return self

    @property
    def stdout(self) -> str:
        return self.out.read_text(errors="replace")

    @property
    def stderr(self) -> str:
        return self.err.read_text(errors="replace")

    def wait(self, timeout_s: float = 120) -> int:
        """Its exit code."""
        assert self.process is not None
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"has not ended within {timeout_s} s:\n{self.tail()}") from None

    def run(self, *flags: str, timeout_s: float = 120) -> int:
        """The same from its beginning."""
        return self.start(*flags).wait(timeout_s)

    def wait_for(self, pattern: str, timeout_s: float = 60) -> None:
        """Wait until its stdout or stderr matches."""
        assert self.process is not None
        end = time.monotonic() + timeout_s
        while not any(re.search(pattern, text, re.DOTALL) for text in (self.stdout, self.stderr)):
            assert time.monotonic() < end, f"has not said {pattern!r}:\n{self.tail()}"
            assert self.process.poll() is None, f"ended before it said {pattern!r}:\n{self.tail()}"
            time.sleep(0.1)

    def table(self) -> dict[str, tuple[str, str, int]]:
        """Replica -> state, exit code and restarts in the table at the end."""
        rows = re.findall(r"^(\S+) +(\w+) +(\d+|-) +(\d+) +[\d.]+$", self.stdout, re.MULTILINE)
        return {name: (state, code, int(restarts)) for name, state, code, restarts in rows}

    def containers(self, *, running: bool = False) -> set[str]:
        """Names of its containers."""
        listed = docker("ps", *([] if running else ["--all"]), "--format={{.Names}}", *self._filters()).stdout
        return set(listed.split())

    def volumes(self) -> set[str]:
        """Names of the volumes that live and die with its pods."""
        return set(docker("volume", "ls", "--quiet", *self._filters()).stdout.split())

    def has_network(self) -> bool:
        return bool(docker("network", "ls", "--quiet", *self._filters()).stdout.split())

    def left(self) -> tuple[set[str], set[str], bool]:
        """Everything of it that is still there."""
        return self.containers(), self.volumes(), self.has_network()

    def _filters(self) -> list[str]:
        return [f"--filter=label=training.kubeflow.org/job-name={self.name}",
                f"--filter=label=mlcore.local-tfjob/namespace={self.namespace}"]  # fmt: skip

    def tail(self) -> str:
        lines = [line for text in (self.stdout, self.stderr) for line in text.splitlines()[-60:]]
        return "\n".join(lines)

    def close(self) -> None:
        """End the process and remove what it left."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for name in self.containers():
            docker("rm", "--force", name, check=False)
        for name in self.volumes():
            docker("volume", "rm", "--force", name, check=False)
        for name in docker("network", "ls", "--quiet", *self._filters()).stdout.split():
            docker("network", "rm", name, check=False)
