"""The tool `local-tfjob`: a TFJob on this machine, before it goes to a cluster."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from mlcore.kubeflow.local.engine import Engine
from mlcore.kubeflow.local.operator import Operator
from mlcore.kubeflow.local.plan import PodPlan
from mlcore.kubeflow.local.pod_template import plan_pod
from mlcore.kubeflow.local.preparations import advise, provide_images
from mlcore.kubeflow.local.tfjob import Manifest, read_manifest
from mlcore.runtime.errors import DataError, TransientError, UsageError
from mlcore.runtime.parameters import Positional, step
from mlcore.runtime.signals import stop_flag

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LocalTFJobResult:
    """How a job ended.

    Attributes:
        state: Succeeded; any other end is an error.
        restarts: Of all its replicas.
        seconds: From the first replica's creation to the end.
    """

    state: str
    restarts: int
    seconds: float


@step
def local_tfjob(
    *,
    manifest: Annotated[Path, Positional()],
    name: str | None = None,
    namespace: str | None = None,
    volume: tuple[str, ...] = (),
    overwrite: bool = False,
    remove: bool = False,
) -> LocalTFJobResult:
    """Run a TFJob on this machine's container engine, the way Kubeflow's training operator would.

    Each replica is a container with the operator's name, DNS name and TF_CONFIG. Restarts, success, failure, deadline
    and what stays at the end follow restartPolicy, successPolicy and runPolicy. What the containers print comes with
    the replica's name before each line; a table of the replicas follows at the end. Needs the command docker.

    Args:
        manifest: YAML file with the TFJob, alone or among other objects (ConfigMaps and Secrets that it needs have to
            be in it); - is the standard input, for kubectl kustomize.
        name: Which TFJob, where the manifest has several.
        namespace: For a job that names none; default: default.
        volume: CLAIM=DIR: a directory of this machine in place of a PersistentVolumeClaim, or of the volume of that
            name. Other claims are volumes of the engine called NAMESPACE.CLAIM, which outlive the job.
        overwrite: Replace what runs here of an earlier run of the job.
        remove: Remove every container at the end, whatever cleanPodPolicy says.

    Returns:
        How it ended.

    Raises:
        UsageError: The manifest is one that the operator would refuse, it asks for what cannot be had here, or there is
            no container engine.
        DataError: The job failed.
        TransientError: The job was active longer than activeDeadlineSeconds.
        Stopped: SIGTERM or Ctrl-C; the containers were stopped and removed.
    """
    directories = dict(_directory(text) for text in volume)
    read = read_manifest(manifest, name, namespace)
    plan_all(read, cpus=1 << 16, directories=directories)  # what is wrong with the manifest is said without an engine
    engine = Engine()
    plans = plan_all(read, cpus=engine.cpus, directories=directories)
    _warn_of_unused(directories, plans)
    with stop_flag() as stop:
        with stop.raising():
            users = provide_images(engine, plans)
        advise(read.job, plans, users)
        operator = Operator(read.job, plans, engine)
        begin = time.monotonic()
        try:
            with stop.raising():
                operator.prepare(overwrite=overwrite)
            outcome = operator.run(stop)
            seconds = time.monotonic() - begin
            log.info("TFJob %s/%s: %s: %s", read.job.namespace, read.job.name, outcome.state, outcome.message)
            operator.tidy_up(outcome, stop, remove=remove)
        except BaseException:
            operator.clear()
            raise
        finally:
            operator.close()
            if operator.pods:
                print("\n".join(operator.table()), flush=True)
    what = f"TFJob {read.job.namespace}/{read.job.name}"
    if outcome.state == "DeadlineExceeded":
        raise TransientError(f"{what} has failed: {outcome.message}")
    if outcome.state == "Failed":
        raise DataError(f"{what} has failed: {outcome.message}")
    return LocalTFJobResult(outcome.state, operator.restarts, seconds)


def plan_all(manifest: Manifest, *, cpus: int, directories: dict[str, Path]) -> list[PodPlan]:
    """The pods of a job.

    Raises:
        UsageError: A template has something that cannot be had here.
    """
    return [
        plan_pod(manifest, spec, index, cpus=cpus, directories=directories)
        for spec in manifest.job.replica_specs.values()
        for index in range(spec.replicas)
    ]


def _directory(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    if not name or not equals or not path:
        raise UsageError(f"--volume={text}: expected CLAIM=DIR")
    directory = Path(path).expanduser()
    if not directory.is_dir():
        raise UsageError(f"--volume={text}: {path} is not a directory")
    return name, directory.absolute()


def _warn_of_unused(directories: dict[str, Path], plans: Sequence[PodPlan]) -> None:
    mounted = {directory for plan in plans for directory in plan.directories}
    for name, directory in directories.items():
        if directory not in mounted:
            claims = sorted({claim.name for plan in plans for claim in plan.claims})
            raise UsageError(
                f"--volume={name}={directory}: the job has no such claim; it has {', '.join(claims) or 'none'}"
            )
