"""TF_CONFIG as the training operator writes it, byte for byte."""

import json
from typing import Any

from mlcore.kubeflow.local.tfjob import TFJob


def tf_config(job: TFJob, kind: str, index: int) -> str | None:
    """What the `tensorflow` container of a replica gets; None for a job of one replica, which gets none.

    The evaluator is in `cluster`, as the operator has it. With enableDynamicWorker a worker knows the parameter servers
    and itself, a parameter server only itself, and the others nobody.
    """
    if job.total == 1:
        return None
    task = {"type": kind.lower(), "index": index}
    if job.dynamic_worker:
        return _compact({"cluster": _sparse(job, kind, index), "task": task})
    # Go writes the keys of a map in order.
    cluster = {spec.role: addresses(job, spec.type) for spec in job.replica_specs.values()}
    return _compact({"cluster": dict(sorted(cluster.items())), "task": task, "environment": "cloud"})


def addresses(job: TFJob, kind: str) -> list[str]:
    """host:port of the replicas of a type."""
    spec = job.replica_specs[kind]
    return [f"{job.host_name(kind, index)}:{spec.port}" for index in range(spec.replicas)]


def _sparse(job: TFJob, kind: str, index: int) -> dict[str, Any]:
    if kind == "PS":
        return {"worker": {}, "ps": [addresses(job, kind)[index]]}
    if kind == "Worker":
        # An absent list is null in Go's JSON.
        servers = addresses(job, "PS") if "PS" in job.replica_specs else None
        return {"worker": {str(index): addresses(job, kind)[index]}, "ps": servers}
    return {"worker": {}, "ps": []}


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))
