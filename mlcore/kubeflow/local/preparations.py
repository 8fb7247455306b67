"""Before a job begins: its images, and what its author should know of it."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from mlcore.kubeflow.local.engine import Engine
from mlcore.kubeflow.local.plan import ContainerPlan, PodPlan
from mlcore.kubeflow.local.tfjob import TFJob
from mlcore.runtime.errors import UsageError

log = logging.getLogger(__name__)


def provide_images(engine: Engine, plans: Sequence[PodPlan]) -> dict[str, str]:
    """Have every image here.

    Returns:
        Image -> the user that it names; empty for root.

    Raises:
        UsageError: An image is not to be had, or runs as root against runAsNonRoot.
    """
    users: dict[str, str] = {}
    for container in (container for plan in plans for container in (*plan.init, plan.main)):
        if container.image not in users:
            users[container.image] = engine.provide_image(container)
        _check_user(container, users[container.image])
    return users


def _check_user(container: ContainerPlan, user: str) -> None:
    """What the kubelet refuses under runAsNonRoot."""
    if not container.must_not_be_root:
        return
    own = user.partition(":")[0]
    where = f"{container.image_path}={container.image}"
    if own in ("", "0", "root"):
        raise UsageError(f"{where}: runs as root, which runAsNonRoot forbids; set runAsUser")
    if not own.isdecimal():
        raise UsageError(f"{where}: its user is called {own}, so runAsNonRoot cannot be checked; set runAsUser")


def advise(job: TFJob, plans: Sequence[PodPlan], users: Mapping[str, str]) -> None:
    """Say what of the templates is not done here, and what would surprise."""
    for note in dict.fromkeys(note for plan in plans for note in plan.notes):
        log.warning("%s", note)
    leader = job.leader or ("Worker" if "Worker" in job.replica_specs else None)
    if leader is None:
        log.warning("the job has neither chief nor worker: on a cluster, too, it can fail but never succeed")
    elif job.replica_specs[leader].restart_policy == "Always":
        log.warning("restartPolicy Always: a %s that ends is started again, so the job never succeeds", leader.lower())
    warned = set()
    for plan in plans:
        for claim in plan.claims:
            user = _identity(plan.main, users[plan.main.image])
            if claim.directory is not None and claim.directory not in warned and not _may_write(claim.directory, *user):
                warned.add(claim.directory)
                log.warning("%s: user %d of the containers may not write to it: chmod a+w, or set runAsUser to %d",
                            claim.directory, user[0], claim.directory.stat().st_uid)  # fmt: skip


def _identity(container: ContainerPlan, image_user: str) -> tuple[int, set[int]]:
    """User and groups of a container; user names of an image are taken for root, of whom nothing is said."""
    values = [option.partition("=") for option in container.options]
    user = next((value for name, _, value in values if name == "--user"), image_user)
    own, _, group = user.partition(":")
    groups = {int(value) for name, _, value in values if name == "--group-add"}
    groups.add(int(group) if group.isdecimal() else 0)
    return int(own) if own.isdecimal() else 0, groups


def _may_write(directory: Path, user: int, groups: set[int]) -> bool:
    found = directory.stat()
    if user == 0:
        return True
    if user == found.st_uid:
        return bool(found.st_mode & 0o200)
    return bool(found.st_mode & (0o020 if found.st_gid in groups else 0o002))
