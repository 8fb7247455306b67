"""A replica's pod template -> `PodPlan`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlcore.kubeflow.local.environment import PodFacts, command_of, environment_of
from mlcore.kubeflow.local.node import Node
from mlcore.kubeflow.local.plan import ContainerPlan, PodPlan
from mlcore.kubeflow.local.resources import resource_options, security_options
from mlcore.kubeflow.local.tf_config import tf_config
from mlcore.kubeflow.local.tfjob import CONTAINER, Manifest, ReplicaSpec
from mlcore.kubeflow.local.volumes import claims_of, mounts_of, volumes_of

LABEL = "training.kubeflow.org/job-name"
NAMESPACE_LABEL = "mlcore.local-tfjob/namespace"

_POD = (
    "containers", "initContainers", "volumes", "securityContext", "terminationGracePeriodSeconds", "restartPolicy",
)  # fmt: skip
# Where to run, by which right: of no meaning on one machine.
_POD_IGNORED = (
    "affinity", "automountServiceAccountToken", "dnsPolicy", "enableServiceLinks", "imagePullSecrets", "nodeName",
    "nodeSelector", "os", "overhead", "preemptionPolicy", "priority", "priorityClassName", "runtimeClassName",
    "schedulerName", "schedulingGates", "serviceAccount", "serviceAccountName", "tolerations",
    "topologySpreadConstraints",
)  # fmt: skip
_CONTAINER = (
    "name", "image", "imagePullPolicy", "command", "args", "workingDir", "env", "envFrom", "ports", "resources",
    "volumeMounts", "securityContext",
)  # fmt: skip
_CONTAINER_SILENT = ("terminationMessagePath", "terminationMessagePolicy", "stdin", "stdinOnce", "tty")
_CONTAINER_IGNORED = ("livenessProbe", "readinessProbe", "startupProbe", "lifecycle")
_GRACE_S = 30


def plan_pod(
    manifest: Manifest, spec: ReplicaSpec, index: int, *, cpus: int, directories: Mapping[str, Path]
) -> PodPlan:
    """The plan of one replica.

    Args:
        manifest: Job, ConfigMaps and Secrets.
        spec: Its type.
        index: Its number.
        cpus: CPUs of the engine.
        directories: Name of a claim or a volume -> the directory in its place.

    Raises:
        UsageError: The template has something that cannot be had here.
    """
    job = manifest.job
    spec.template.only(("metadata", "spec"))
    pod = spec.template.at("spec")
    notes = [f"{name} has no meaning here" for name in pod.only(_POD, _POD_IGNORED)]
    if pod.at("restartPolicy").text("") not in ("", spec.restart_policy):
        notes.append(f"restartPolicy of the template: the operator puts the replica's own, {spec.restart_policy}")
    facts = _facts(manifest, spec, index)
    volumes = volumes_of(pod, facts, directories)
    config = tf_config(job, spec.type, index)

    def container(node: Node) -> ContainerPlan:
        plan, more = _container(
            node, pod, facts, cpus=cpus, mounts=mounts_of(node, volumes, job.namespace), config=config
        )
        notes.extend(more)
        return plan

    for node in pod.at("containers").items():
        if node.at("name").text() != CONTAINER:
            raise node.at("name").error(f"a second container beside {CONTAINER} cannot be run here")
    for node in pod.at("initContainers").items():
        if node.at("restartPolicy").given:
            raise node.at("restartPolicy").error("an init container that goes on running cannot be run here")
    main, *others = pod.at("containers").items()
    if others:
        raise others[0].at("name").error("is there twice")
    grace_s = pod.at("terminationGracePeriodSeconds").integer(_GRACE_S)
    return PodPlan(
        name=facts.name,
        type=spec.type,
        index=index,
        restart_policy=spec.restart_policy,
        init=tuple(container(node) for node in pod.at("initContainers").items()),
        main=container(main),
        volumes=tuple(volume.own for volume in volumes.values() if volume.own is not None),
        claims=claims_of(pod, volumes),
        directories=tuple(volume.directory for volume in volumes.values() if volume.directory is not None),
        grace_s=_GRACE_S if grace_s is None else grace_s,
        notes=tuple(dict.fromkeys(notes)),
    )


def _facts(manifest: Manifest, spec: ReplicaSpec, index: int) -> PodFacts:
    job, metadata = manifest.job, spec.template.at("metadata")
    leads = spec.type == (job.leader or "Worker") and (job.leader is not None or index == 0)
    labels = {key: value.text() for key, value in metadata.at("labels").entries()}
    labels |= {
        LABEL: job.name,
        "training.kubeflow.org/operator-name": "tfjob-controller",
        "training.kubeflow.org/replica-type": spec.role,
        "training.kubeflow.org/replica-index": str(index),
        **({"training.kubeflow.org/job-role": "master"} if leads else {}),
    }
    annotations = {key: value.text() for key, value in metadata.at("annotations").entries()}
    return PodFacts(job.pod_name(spec.type, index), job.namespace, labels, annotations, manifest.files)


def _container(
    node: Node, pod: Node, facts: PodFacts, *, cpus: int, mounts: list[str], config: str | None
) -> tuple[ContainerPlan, list[str]]:
    ignored = node.only((*_CONTAINER, "restartPolicy"), (*_CONTAINER_SILENT, *_CONTAINER_IGNORED))
    name = node.at("name").text()
    notes = [f"{key} of the container {name} is not run here" for key in ignored if key in _CONTAINER_IGNORED]
    values = environment_of(node, facts)
    if name == CONTAINER and config is not None:
        values["TF_CONFIG"] = config
    entry_point, arguments = command_of(node, values)
    resources, more = resource_options(node.at("resources"), cpus)
    security, must_not_be_root = security_options(pod.at("securityContext"), node.at("securityContext"))
    directory: Any = node.at("workingDir").text("")
    options = (
        *(f"--label={key}={value}" for key, value in facts.labels.items()),
        f"--label={NAMESPACE_LABEL}={facts.namespace}",
        *(f"--env={key}={value}" for key, value in values.items()),
        *([f"--workdir={directory}"] if directory else []),
        *resources,
        *security,
        *mounts,
        *entry_point,
    )
    plan = ContainerPlan(
        name=name,
        image=node.at("image").text(),
        pull=node.at("imagePullPolicy").choice(("", "Always", "IfNotPresent", "Never"), ""),
        options=options,
        arguments=arguments,
        image_path=f"{node.source}: {node.at('image').path}",
        must_not_be_root=must_not_be_root,
    )
    return plan, notes + more
