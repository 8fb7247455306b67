"""How many cores this process may use: in a container often fewer than the machine has.

Kubernetes and `docker run --cpus` limit a container's share of time by cgroups (cpu.max in version 2, cpu.cfs_quota_us
in version 1: https://docs.kernel.org/admin-guide/cgroup-v2.html and .../scheduler/sched-bwc.html). All cores of the
machine stay visible, so that a library makes a thread for each of 64 cores where 4 are granted; they use up the share
at once, and then all of them wait.
"""

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath


def usable_cores(root: Path = Path("/")) -> int:
    """The cores that this process may run on, or as many as its share of time is worth, rounded up; at least 1.

    Args:
        root: Where proc/ and sys/ are.
    """
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, min([cores, *map(math.ceil, _limits(root))]))


def limit_threads() -> None:
    """Have TensorFlow make threads for the usable cores, where these are fewer than it sees; before it is imported.

    What the user has set in the environment stays.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    cores = usable_cores()
    if affinity and cores < len(affinity(0)):
        for name in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS"):
            os.environ.setdefault(name, str(cores))


def _limits(root: Path) -> Iterator[float]:
    """Cores' worth of time that the process's cgroup and those around it grant."""
    for folder in _cgroups(root):
        with contextlib.suppress(OSError, ValueError):
            quota, period = (folder / "cpu.max").read_text().split()
            if quota != "max":
                yield int(quota) / int(period)
        with contextlib.suppress(OSError, ValueError):
            quota_us = int((folder / "cpu.cfs_quota_us").read_text())
            if quota_us > 0:  # -1: no limit
                yield quota_us / int((folder / "cpu.cfs_period_us").read_text())


def _cgroups(root: Path) -> Iterator[Path]:
    """The folders of the process's cgroup and of all that hold it, as far as they can be seen from here.

    In a container the names in /proc are often the host's, while /sys/fs/cgroup starts at the container's own.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / controllers
        own = PurePosixPath(path.lstrip("/"))
        for name in (own, *own.parents):
            yield mount / name
