"""What the benchmarks of whole processes share: their cost, and memory that is ready for what they write."""

import os
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

_PIECE = bytes(1 << 20)


class Cost(NamedTuple):
    """Of a process with its children: CPU and wall seconds, and peak memory in megabytes (of the largest of them)."""

    cpu_s: float
    wall_s: float
    peak_mb: float


def run(command: Sequence[str]) -> Cost:
    """Run a command to its end, which must be a good one."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    with tempfile.TemporaryFile() as messages:
        started = time.perf_counter()
        process = subprocess.Popen(command, env=environment, stdout=messages, stderr=messages)
        _, status, used = os.wait4(process.pid, 0)
        wall = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            messages.seek(0)
            raise SystemExit(f"{' '.join(command)}: {process.returncode}\n{messages.read()[-2000:].decode()}")
    return Cost(used.ru_utime + used.ru_stime, wall, used.ru_maxrss / 1000)


def settle(scratch: Path, megabytes: int) -> None:
    """Have the memory ready that new files take, and nothing left to be written back.

    A virtual machine gives freed memory back to its host after seconds, and gets it anew at several times the cost of
    all else that is measured here, by chance for the one program or the other.
    """
    path = scratch / "settle"
    with path.open("wb") as file:
        for _ in range(megabytes):
            file.write(_PIECE)
    os.sync()
    path.unlink()
    os.sync()
