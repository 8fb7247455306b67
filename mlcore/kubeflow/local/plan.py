"""What a pod is made of here: containers with their options for `docker create`, and volumes. Pure data."""

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class ContainerPlan:
    """A container.

    Attributes:
        name: Name in the pod template.
        image: Image.
        pull: imagePullPolicy; empty where it is not given.
        options: For `docker create`, without name and network.
        arguments: What follows the image.
        image_path: Path of the image in the manifest, for messages.
        must_not_be_root: runAsNonRoot without a runAsUser: the image has to name a user.
    """

    name: str
    image: str
    pull: str
    options: tuple[str, ...]
    arguments: tuple[str, ...]
    image_path: str
    must_not_be_root: bool = False


@dataclass(frozen=True)
class VolumePlan:
    """A volume of a pod that lives and dies with it: an emptyDir, a ConfigMap or a Secret.

    Attributes:
        name: Of the engine's volume.
        mode: Of its directory.
        group: fsGroup, which owns it; None where the pod names none.
        folders: Paths of folders in it, parents first.
        files: Path -> (content, mode).
    """

    name: str
    mode: int = 0o777
    group: int | None = None
    folders: tuple[str, ...] = ()
    files: Mapping[str, tuple[bytes, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class ClaimPlan:
    """A PersistentVolumeClaim: an engine's volume, which outlives the job, or a directory of this machine.

    Attributes:
        name: Of the claim and of the engine's volume.
        directory: The directory in its place.
        group: fsGroup of the pods that mount it.
        folders: Paths in it that pods mount (subPath).
    """

    name: str
    directory: Path | None = None
    group: int | None = None
    folders: tuple[str, ...] = ()


@dataclass(frozen=True)
class PodPlan:
    """A pod.

    Attributes:
        name: `myjob-worker-1`.
        type: Of the replica.
        index: Of the replica.
        restart_policy: Of the replica.
        init: Containers that run first, one after the other.
        main: The container `tensorflow`.
        volumes: That live and die with it.
        claims: That it mounts.
        directories: Of this machine that it mounts.
        grace_s: Seconds between SIGTERM and SIGKILL.
        notes: What of the template is not done here, in words.
    """

    name: str
    type: str
    index: int
    restart_policy: str
    init: tuple[ContainerPlan, ...]
    main: ContainerPlan
    volumes: tuple[VolumePlan, ...]
    claims: tuple[ClaimPlan, ...]
    directories: tuple[Path, ...]
    grace_s: int
    notes: tuple[str, ...]


def mount_option(**fields: str | bool) -> str:
    """`--mount=type=volume,source=...` of docker, which reads it as a line of CSV."""
    parts = [name.replace("_", "-") if value is True else f"{name.replace('_', '-')}={value}"
             for name, value in fields.items() if value is not False]  # fmt: skip
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(parts)
    return f"--mount={line.getvalue()}"


def claim_volume(namespace: str, claim: str) -> str:
    """The engine's volume for a claim."""
    return f"{namespace}.{claim}"
