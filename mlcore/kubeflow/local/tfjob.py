"""A manifest -> `TFJob`: read, and checked by the rules of the training operator's webhook."""

import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlcore.kubeflow.local.node import Node
from mlcore.runtime.errors import UsageError

API_VERSION, KIND = "kubeflow.org/v1", "TFJob"
CONTAINER, PORT_NAME, PORT = "tensorflow", "tfjob-port", 2222
# In the order in which the operator looks at them.
TYPES = ("Chief", "Evaluator", "Master", "PS", "Worker")
RESTART_POLICIES = ("Always", "OnFailure", "Never", "ExitCode")
CLEAN_POD_POLICIES = ("None", "Running", "All")
_LABEL = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
_NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_MOST_REPLICAS = 100
_OPERATOR = "kubeflow.org/training-operator"


@dataclass(frozen=True)
class ReplicaSpec:
    """The replicas of one type.

    Attributes:
        type: One of `TYPES`.
        replicas: How many.
        restart_policy: One of `RESTART_POLICIES`.
        template: The pod template.
        port: Of `tfjob-port`.
    """

    type: str
    replicas: int
    restart_policy: str
    template: Node
    port: int

    @property
    def role(self) -> str:
        """The type as names and TF_CONFIG have it: `worker`."""
        return self.type.lower()


@dataclass(frozen=True)
class TFJob:
    """A TFJob with the operator's defaults.

    Attributes:
        name: Name.
        namespace: Namespace.
        replica_specs: By type, in the order of `TYPES`.
        clean_pod_policy: One of `CLEAN_POD_POLICIES`.
        success_policy: Empty or AllWorkers.
        dynamic_worker: `enableDynamicWorker`.
        backoff_limit: Restarts of containers after which the job fails.
        active_deadline_s: Seconds after which it fails.
        ttl_s: Seconds after its end when it is removed.
    """

    name: str
    namespace: str
    replica_specs: Mapping[str, ReplicaSpec]
    clean_pod_policy: str = "None"
    success_policy: str = ""
    dynamic_worker: bool = False
    backoff_limit: int | None = None
    active_deadline_s: int | None = None
    ttl_s: int | None = None

    @property
    def leader(self) -> str | None:
        """The type whose end is the job's: Chief or Master, if there is one."""
        return next((kind for kind in ("Chief", "Master") if kind in self.replica_specs), None)

    @property
    def total(self) -> int:
        """Number of replicas."""
        return sum(spec.replicas for spec in self.replica_specs.values())

    def pod_name(self, kind: str, index: int) -> str:
        """`myjob-worker-1`."""
        return f"{self.name}-{kind.lower()}-{index}"

    def host_name(self, kind: str, index: int) -> str:
        """The name of a pod's Service in DNS: `myjob-worker-1.kubeflow.svc`."""
        return f"{self.pod_name(kind, index)}.{self.namespace}.svc"


@dataclass(frozen=True)
class Manifest:
    """What a manifest holds for a job.

    Attributes:
        job: The TFJob.
        files: (kind, name) of each ConfigMap and Secret -> its Node.
    """

    job: TFJob
    files: Mapping[tuple[str, str], Node]


def read_manifest(path: Path, name: str | None = None, namespace: str | None = None) -> Manifest:
    """Read a TFJob from a file of YAML documents, such as `kubectl kustomize` writes; `-` is the standard input.

    Args:
        path: The file.
        name: Which TFJob, where there are several.
        namespace: For a job that names none.

    Raises:
        UsageError: The file cannot be read, has no such job, or the operator would refuse it.
    """
    documents = list(_documents(path))
    jobs = [node for node in documents if node.value.get("kind") == KIND]
    if not jobs:
        kinds = sorted({str(node.value.get("kind")) for node in documents})
        raise UsageError(f"{path}: no TFJob in it (it has {', '.join(kinds) or 'nothing'})")
    names = [node.at("metadata").at("name").text() for node in jobs]
    if name is None and len(jobs) > 1:
        raise UsageError(f"{path}: {len(jobs)} TFJobs in it; choose one by --name: {', '.join(names)}")
    if name is not None and name not in names:
        raise UsageError(f"--name={name}: {path} has {', '.join(names)}")
    node = jobs[0 if name is None else names.index(name)]
    files = {
        (document.value["kind"], document.at("metadata").at("name").text()): document
        for document in documents
        if document.value.get("kind") in ("ConfigMap", "Secret")
    }
    return Manifest(parse_tfjob(node, namespace), files)


def _documents(path: Path) -> Iterator[Node]:
    import yaml

    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text()
        documents = list(yaml.safe_load_all(text))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not YAML: {error}") from error
    for document in documents:
        if document is None:
            continue
        if not isinstance(document, dict):
            raise UsageError(f"{path}: expected Kubernetes objects, found {type(document).__name__}")
        parts = document.get("items") if document.get("kind") == "List" else [document]
        for part in parts if isinstance(parts, list) else []:
            if not isinstance(part, dict):
                raise UsageError(f"{path}: expected Kubernetes objects, found {type(part).__name__}")
            metadata = part.get("metadata")
            own = metadata.get("name", "") if isinstance(metadata, dict) else ""
            yield Node(part, source=f"{path}: {part.get('kind')} {own}".rstrip())


def parse_tfjob(node: Node, namespace: str | None = None) -> TFJob:
    """A TFJob from its object.

    Raises:
        UsageError: Names the field and the reason that the operator has, or would have.
    """
    node.only(("apiVersion", "kind", "metadata", "spec"), ("status",))
    if node.at("apiVersion").text() != API_VERSION:
        raise node.at("apiVersion").error(f"expected {API_VERSION}")
    metadata, spec = node.at("metadata"), node.at("spec")
    name = metadata.at("name")
    if not _LABEL.fullmatch(name.text()):
        raise name.error(
            "must be a DNS-1035 label: at most 63 lower case letters, digits and '-', first a letter, last no '-'"
        )
    chosen = metadata.at("namespace")
    if not _NAMESPACE.fullmatch(chosen.text(namespace or "default")):
        raise (
            chosen.error("must be a DNS-1123 label")
            if chosen.given
            else UsageError(f"--namespace={namespace}: expected lower case letters, digits and '-'")
        )
    spec.only(("runPolicy", "successPolicy", "tfReplicaSpecs", "enableDynamicWorker"))
    policy = spec.at("runPolicy")
    policy.only(
        ("activeDeadlineSeconds", "backoffLimit", "cleanPodPolicy", "managedBy", "suspend", "ttlSecondsAfterFinished"),
        ("schedulingPolicy",),
    )
    if policy.at("suspend").boolean():
        raise policy.at("suspend").error("the operator would start nothing")
    if policy.at("managedBy").text(_OPERATOR) != _OPERATOR:
        raise policy.at("managedBy").error(f"the operator would leave it alone; expected {_OPERATOR}")
    job = TFJob(
        name=name.text(),
        namespace=chosen.text(namespace or "default"),
        replica_specs=_replica_specs(spec.at("tfReplicaSpecs")),
        clean_pod_policy=policy.at("cleanPodPolicy").choice(CLEAN_POD_POLICIES, "None"),
        success_policy=spec.at("successPolicy").choice(("", "AllWorkers"), ""),
        dynamic_worker=spec.at("enableDynamicWorker").boolean(),
        backoff_limit=policy.at("backoffLimit").integer(),
        active_deadline_s=policy.at("activeDeadlineSeconds").integer(minimum=1),
        ttl_s=policy.at("ttlSecondsAfterFinished").integer(),
    )
    for kind, replicas in job.replica_specs.items():
        longest = job.pod_name(kind, max(replicas.replicas - 1, 0))
        if not _LABEL.fullmatch(longest):
            raise name.error(f"too long: there can be no Service {longest}, which has {len(longest)} letters, not 63")
    return job


def _replica_specs(node: Node) -> dict[str, ReplicaSpec]:
    if not node.mapping():
        raise node.error("must be given")
    specs: dict[str, ReplicaSpec] = {}
    for key, entry in node.entries():
        kind = next((kind for kind in TYPES if kind.lower() == key.lower()), None)
        if kind is None:
            raise entry.error(f"no type of replica; expected one of {', '.join(TYPES)}", show=False)
        if kind in specs:
            raise entry.error("is there twice", show=False)
        specs[kind] = _replica_spec(kind, entry)
    if "Chief" in specs and "Master" in specs:
        raise node.error("must not have more than one Chief or Master role", show=False)
    return {kind: specs[kind] for kind in TYPES if kind in specs}


def _replica_spec(kind: str, node: Node) -> ReplicaSpec:
    node.only(("replicas", "restartPolicy", "template"))
    template = node.at("template")
    containers = template.at("spec").at("containers")
    if not containers.items():
        raise containers.error("must be given", show=False)
    for container in containers.items():
        if not container.at("image").text(""):
            raise container.at("image").error("must be given")
    main = main_container(template)
    replicas = node.at("replicas").integer(1)
    assert replicas is not None
    if replicas > _MOST_REPLICAS:
        raise node.at("replicas").error(f"more than {_MOST_REPLICAS} of a type are too many for one machine")
    return ReplicaSpec(
        kind, replicas, node.at("restartPolicy").choice(RESTART_POLICIES, "Never"), template, _port(main)
    )


def main_container(template: Node) -> Node:
    """The container that gets TF_CONFIG and whose exit code counts."""
    containers = template.at("spec").at("containers")
    for container in containers.items():
        if container.at("name").text() == CONTAINER:
            return container
    names = ", ".join(container.at("name").text() for container in containers.items())
    raise containers.error(
        f"must have a container with the name {CONTAINER} (it has {names}): no other gets TF_CONFIG", show=False
    )


def _port(container: Node) -> int:
    for port in container.at("ports").items():
        if port.at("name").text("") == PORT_NAME:
            number: Any = port.at("containerPort").integer(minimum=1)
            if number is None:
                raise port.at("containerPort").error("must be given")
            return int(number)
    return PORT
