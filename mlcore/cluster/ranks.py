"""A TF_CONFIG for jobs that number their pods and say nothing more: TrainJob, JobSet, Indexed Job.

What these set: an Indexed Job gives each pod `JOB_COMPLETION_INDEX` and the host name `<job>-<index>`; the jobs of a
JobSet are such, with pods `<jobset>-<replicated job>-<job>-<index>.<jobset>`; Kubeflow Trainer's torch policy adds
`PET_NNODES`, `PET_NODE_RANK` and `PET_MASTER_ADDR` (`<trainjob>-node-0-0.<trainjob>`), its jax policy
`JAX_NUM_PROCESSES`, `JAX_PROCESS_ID` and `JAX_COORDINATOR_ADDRESS`. What they do not tell comes from the manifest:

| variable | meaning | else |
| --- | --- | --- |
| MLCORE_CLUSTER_SIZE | number of pods | PET_NNODES, JAX_NUM_PROCESSES; none: one machine |
| MLCORE_CLUSTER_RANK | number of this pod | PET_NODE_RANK, JAX_PROCESS_ID, JOB_COMPLETION_INDEX |
| MLCORE_CLUSTER_HOSTS | names with commas, or one with `{rank}` | from the master's address or the pod's own name |
| MLCORE_CLUSTER_PORT | port of every member | 2222 |
| MLCORE_CLUSTER_PS | number of parameter servers | 1 where there are three pods or more, else 0 |
| MLCORE_CLUSTER_EVALUATORS | 0 or 1 | 0 |

Rank 0 is the chief, then come the parameter servers, then the workers, and an evaluator is the last.
"""

import re
import socket
from collections.abc import Callable, Mapping
from typing import Any

from mlcore.runtime.errors import UsageError

_PREFIX = "MLCORE_CLUSTER_"
_SIZE = (_PREFIX + "SIZE", "PET_NNODES", "JAX_NUM_PROCESSES")
_RANK = (_PREFIX + "RANK", "PET_NODE_RANK", "JAX_PROCESS_ID", "JOB_COMPLETION_INDEX")
_MASTER = ("PET_MASTER_ADDR", "JAX_COORDINATOR_ADDRESS")


def tf_config_from_ranks(
    environ: Mapping[str, str], own_name: Callable[[], str] = socket.getfqdn
) -> dict[str, Any] | None:
    """The TF_CONFIG of a pod that only knows ranks; None where no number of pods above one is set.

    Args:
        environ: Environment variables.
        own_name: Gives the pod's full host name; asked only where nothing else tells the names.

    Raises:
        UsageError: A variable has a wrong value, or the names of the others cannot be known.
    """
    size_name, size = _number(environ, _SIZE, minimum=1)
    if size is None or size == 1:
        return None
    rank_name, rank = _number(environ, _RANK, minimum=0)
    if rank is None:
        raise UsageError(f"{size_name}={size}, but this pod has no rank: expected {' or '.join(_RANK)}")
    if rank >= size:
        raise UsageError(f"{rank_name}={rank}: expected 0 to {size - 1}, since {size_name}={size}")
    _, port = _number(environ, (_PREFIX + "PORT",), minimum=1)
    _, ps = _number(environ, (_PREFIX + "PS",), minimum=0)
    _, evaluators = _number(environ, (_PREFIX + "EVALUATORS",), minimum=0)
    evaluators = evaluators or 0
    if ps is None:
        ps = 1 if size - evaluators >= 3 else 0
    if evaluators > 1 or size - 1 - ps - evaluators < (1 if ps else 0):
        raise UsageError(
            f"{size_name}={size} is too few for a chief, {ps} ps ({_PREFIX}PS), a worker and {evaluators} evaluators "
            f"({_PREFIX}EVALUATORS, at most 1)"
        )
    addresses = [f"{host}:{port or 2222}" for host in _hosts(environ, size, rank, own_name)]
    roles = ["chief"] + ["ps"] * ps + ["worker"] * (size - 1 - ps - evaluators) + ["evaluator"] * evaluators
    cluster: dict[str, list[str]] = {}
    for role, address in zip(roles, addresses, strict=True):
        cluster.setdefault(role, []).append(address)
    return {"cluster": cluster, "task": {"type": roles[rank], "index": roles[:rank].count(roles[rank])}}


def _number(environ: Mapping[str, str], names: tuple[str, ...], minimum: int) -> tuple[str, int | None]:
    """The first of some variables that is set, and its value."""
    for name in names:
        text = environ.get(name, "").strip()
        if not text:
            continue
        if not re.fullmatch(r"[0-9]{1,9}", text) or int(text) < minimum:
            raise UsageError(f"{name}={text}: expected a whole number from {minimum}")
        return name, int(text)
    return names[0], None


def _hosts(environ: Mapping[str, str], size: int, rank: int, own_name: Callable[[], str]) -> list[str]:
    text = environ.get(_PREFIX + "HOSTS", "").strip()
    if "{rank}" in text:
        return [text.replace("{rank}", str(number)) for number in range(size)]
    if text:
        hosts = [host.strip() for host in text.split(",")]
        if len(hosts) != size or not all(hosts):
            raise UsageError(f"{_PREFIX}HOSTS={text}: expected {size} names with commas, or one with {{rank}}")
        return hosts
    for name in _MASTER:
        if master := environ.get(name, "").strip():
            pattern = _numbered(master.rsplit(":", 1)[0], 0)
            if pattern is None:
                raise UsageError(f"{name}={master}: expected <job>-0.<domain>; else set {_PREFIX}HOSTS")
            return [pattern.replace("{rank}", str(number)) for number in range(size)]
    own = own_name()
    pattern = _numbered(own, rank)
    if pattern is None:
        raise UsageError(
            f"the pod's name {own} does not tell those of the others (expected <job>-{rank}.<service>): "
            f"set {_PREFIX}HOSTS to names with commas, or to one with {{rank}}"
        )
    return [pattern.replace("{rank}", str(number)) for number in range(size)]


def _numbered(name: str, rank: int) -> str | None:
    """`job-{rank}.service` from `job-3.service` and 3."""
    host, dot, domain = name.partition(".")
    head, dash, number = host.rpartition("-")
    return f"{head}-{{rank}}.{domain}" if dash and dot and domain and number == str(rank) else None
