"""Volumes of a pod template: what of them the engine makes, and how a container mounts them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mlcore.kubeflow.local.environment import PodFacts
from mlcore.kubeflow.local.node import Node
from mlcore.kubeflow.local.plan import ClaimPlan, VolumePlan, claim_volume, mount_option
from mlcore.kubeflow.local.resources import quantity


@dataclass(frozen=True)
class Volume:
    """A volume of a pod.

    Attributes:
        node: In the template.
        own: That lives and dies with the pod.
        claim: Of the job.
        directory: Of this machine, in place of either.
        memory: Whether it is a file system in memory, one for each container.
        size: Of that, in bytes; 0 for no limit.
        read_only: Whether nobody may write to it.
    """

    node: Node
    own: VolumePlan | None = None
    claim: str | None = None
    directory: Path | None = None
    memory: bool = False
    size: int = 0
    read_only: bool = False


def volumes_of(spec: Node, facts: PodFacts, directories: Mapping[str, Path]) -> dict[str, Volume]:
    """The volumes of a pod by name.

    Args:
        spec: `spec` of the pod template.
        facts: About the pod.
        directories: Name of a claim or a volume -> the directory in its place.
    """
    group = spec.at("securityContext").at("fsGroup").integer()
    volumes: dict[str, Volume] = {}
    for node in spec.at("volumes").items():
        name = node.at("name").text()
        if name in volumes:
            raise node.at("name").error("is there twice")
        volumes[name] = _volume(node, name, group, facts, directories)
    return volumes


def _volume(node: Node, name: str, group: int | None, facts: PodFacts, directories: Mapping[str, Path]) -> Volume:
    if name in directories:
        return Volume(node, directory=directories[name])
    kinds = [key for key in node.mapping() if key != "name"]
    kind = kinds[0] if len(kinds) == 1 else "emptyDir" if not kinds else ""
    source = node.at(kind)
    engine_name = f"{facts.name}.{name}"
    if kind == "persistentVolumeClaim":
        source.only(("claimName", "readOnly"))
        claim = source.at("claimName").text()
        return Volume(node, claim=claim, directory=directories.get(claim), read_only=source.at("readOnly").boolean())
    if kind == "emptyDir":
        source.only(("medium", "sizeLimit"))
        if source.at("medium").choice(("", "Memory"), ""):
            size = int(quantity(source.at("sizeLimit"))) if source.at("sizeLimit").given else 0
            return Volume(node, memory=True, size=size)
        return Volume(node, own=VolumePlan(engine_name, 0o777 if group is None else 0o2777, group))
    if kind in ("configMap", "secret"):
        files = _files(source, kind, facts)
        return Volume(node, own=VolumePlan(engine_name, 0o755, group, files=files), read_only=True)
    if kind == "hostPath":
        source.only(("path", "type"))
        directory = Path(source.at("path").text())
        if source.at("type").text("") == "DirectoryOrCreate":
            directory.mkdir(parents=True, exist_ok=True)
        if not directory.exists():
            raise source.at("path").error("is not on this machine")
        return Volume(node, directory=directory)
    raise node.error(
        f"a volume of the kind {', '.join(map(str, kinds))} is not to be had here; expected persistentVolumeClaim, "
        f"emptyDir, configMap, secret or hostPath, or --volume={name}=DIR for a directory in its place", show=False,
    )  # fmt: skip


def _files(source: Node, kind: str, facts: PodFacts) -> dict[str, tuple[bytes, int]]:
    key = "name" if kind == "configMap" else "secretName"
    source.only((key, "items", "defaultMode", "optional"))
    optional = source.at("optional").boolean()
    content = facts.data("ConfigMap" if kind == "configMap" else "Secret", source.at(key), optional)
    mode = source.at("defaultMode").integer(0o644) or 0
    if not source.at("items").given:
        return {name: (value, mode) for name, value in content.items()}
    files: dict[str, tuple[bytes, int]] = {}
    for item in source.at("items").items():
        item.only(("key", "path", "mode"))
        name = item.at("key").text()
        if name in content:
            files[_inside(item.at("path"))] = content[name], item.at("mode").integer(mode) or 0
        elif not optional:
            raise item.at("key").error(f"the {kind} has no such key")
    return files


def _inside(node: Node) -> str:
    path = PurePosixPath(node.text())
    if path.is_absolute() or ".." in path.parts or str(path) == ".":
        raise node.error("expected a path below the volume")
    return str(path)


def mounts_of(container: Node, volumes: Mapping[str, Volume], namespace: str) -> list[str]:
    """The options of `docker create` for the volumeMounts of a container."""
    options = []
    for mount in container.at("volumeMounts").items():
        mount.only(("name", "mountPath", "readOnly", "subPath"), ("mountPropagation", "recursiveReadOnly"))
        name, target = mount.at("name"), mount.at("mountPath").text()
        if name.text() not in volumes:
            raise name.error(f"no such volume; expected one of {', '.join(volumes) or 'none: the pod has no volumes'}")
        if not target.startswith("/") or ":" in target:
            raise mount.at("mountPath").error("expected an absolute path without ':'")
        volume = volumes[name.text()]
        below = _inside(mount.at("subPath")) if mount.at("subPath").text("") else ""
        read_only = mount.at("readOnly").boolean() or volume.read_only
        if volume.directory is not None:
            source = (volume.directory / below).absolute()
            if below and not source.exists():
                source.mkdir(parents=True)
            options.append(mount_option(type="bind", source=str(source), target=target, readonly=read_only))
        elif volume.memory:
            size = f",size={volume.size}" if volume.size else ""
            options.append(f"--tmpfs={target}:{'ro' if read_only else 'rw'},exec,mode=1777{size}")
        else:
            source_name = volume.own.name if volume.own else claim_volume(namespace, str(volume.claim))
            extra: dict[str, str | bool] = {"volume_subpath": below} if below else {}
            options.append(
                mount_option(type="volume", source=source_name, target=target, readonly=read_only,
                             volume_nocopy=True, **extra)
            )  # fmt: skip
    return options


def claims_of(spec: Node, volumes: Mapping[str, Volume]) -> tuple[ClaimPlan, ...]:
    """The claims that a pod mounts, with the folders in them that it wants."""
    group = spec.at("securityContext").at("fsGroup").integer()
    folders: dict[str, set[str]] = {}
    for container in [*spec.at("initContainers").items(), *spec.at("containers").items()]:
        for mount in container.at("volumeMounts").items():
            if mount.at("subPath").text(""):
                folders.setdefault(mount.at("name").text(), set()).add(_inside(mount.at("subPath")))
    return tuple(
        ClaimPlan(volume.claim, volume.directory, group, tuple(sorted(folders.get(name, ()))))
        for name, volume in volumes.items()
        if volume.claim is not None
    )
