"""Runs docker and the images of the steps."""

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

import pytest

# Images of a step that has another one: name -> step.
VARIANTS = {"predict-client": "predict"}

# What an orchestrator takes away from a container; the steps need none of it.
HARDENED = ("--read-only", "--tmpfs=/tmp", "--cap-drop=ALL", "--security-opt=no-new-privileges")
OFFLINE = (*HARDENED, "--network=none")


def docker(*arguments: str, check: bool = True, timeout: float = 600) -> "subprocess.CompletedProcess[str]":
    """Run docker; if check, a failure fails the test and shows what it said."""
    result = subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=timeout, check=False)
    if check and result.returncode != 0:
        pytest.fail(f"docker {' '.join(arguments)} ended with {result.returncode}:\n{result.stdout}\n{result.stderr}")
    return result


@dataclass(frozen=True)
class Image:
    """The image of a step, or a variant of it under a name of its own."""

    name: str
    step: str
    flavour: str
    reference: str

    def run(
        self, *arguments: str, options: Sequence[str] = OFFLINE, timeout: float = 600
    ) -> "subprocess.CompletedProcess[str]":
        """Run a container to its end, whatever its exit code."""
        return docker("run", "--rm", *options, self.reference, *arguments, check=False, timeout=timeout)

    def shell(self, script: str, options: Sequence[str] = ()) -> str:
        """What a shell script prints in the image, run as root."""
        return docker("run", "--rm", "--user=0:0", "--network=none", "--entrypoint=sh", *options, self.reference,
                      "-c", script).stdout  # fmt: skip
