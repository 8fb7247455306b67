"""Resources and security context of a container as options of `docker create`."""

import re
from collections.abc import Sequence
from fractions import Fraction

from mlcore.kubeflow.local.node import Node

_QUANTITY = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+|[numkMGTPE]|[KMGTPE]i)?")
_SUFFIXES = {
    **{suffix: Fraction(1000) ** power for power, suffix in zip(range(-3, 0), "num", strict=True)},
    **{suffix: Fraction(1000) ** power for power, suffix in enumerate("kMGTPE", 1)},
    **{f"{suffix}i": Fraction(1024) ** power for power, suffix in enumerate("KMGTPE", 1)},
}
_LEAST_MEMORY = 6 << 20  # the engine's own limit
_GPU = "nvidia.com/gpu"
_IDENTITY = ("runAsUser", "runAsGroup", "runAsNonRoot", "seccompProfile")


def quantity(node: Node) -> Fraction:
    """A quantity of Kubernetes: `500m`, `2`, `1.5Gi`, `1e9`."""
    value = node.value
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise node.error("expected a quantity such as 500m, 2 or 1.5Gi")
    match = _QUANTITY.fullmatch(str(value))
    if match is None:
        raise node.error("expected a quantity such as 500m, 2 or 1.5Gi")
    number, suffix = match.groups()
    if suffix is None:
        return Fraction(number)
    return Fraction(number) * (_SUFFIXES[suffix] if suffix in _SUFFIXES else Fraction(f"1{suffix}"))


def resource_options(node: Node, cpus: int) -> tuple[list[str], list[str]]:
    """Options for requests and limits, and notes on what this machine cannot give.

    Args:
        node: `resources` of a container.
        cpus: What the engine has; it refuses more.
    """
    node.only(("limits", "requests"), ("claims",))
    options: list[str] = []
    notes: list[str] = []
    for name, limit in node.at("limits").entries():
        amount = quantity(limit)
        if name == "cpu":
            if amount > cpus:
                notes.append(f"limits of {float(amount):g} CPUs: this machine has {cpus}")
            granted = min(max(amount, Fraction(1, 100)), Fraction(cpus))
            options.append(f"--cpus={float(granted):g}")
        elif name == "memory":
            if amount < _LEAST_MEMORY:
                raise limit.error("expected at least 6Mi")
            # As much swap as memory is none at all, as on a cluster.
            options += [f"--memory={int(amount)}", f"--memory-swap={int(amount)}"]
        elif name == _GPU:
            options.append(f"--gpus={int(amount)}")
        else:
            notes.append(f"limits of {name} are not kept here")
    for name, request in node.at("requests").entries():
        amount = quantity(request)
        if name == "cpu":
            options.append(f"--cpu-shares={max(2, int(amount * 1024))}")
    return options, notes


def security_options(pod: Node, container: Node) -> tuple[list[str], bool]:
    """Options for the security context of a pod and of one of its containers.

    Returns:
        The options, and whether the image must name a user of its own that is not root.
    """
    pod.only(
        (*_IDENTITY, "fsGroup", "fsGroupChangePolicy", "supplementalGroups"),
        ("seLinuxOptions", "windowsOptions", "appArmorProfile", "supplementalGroupsPolicy", "seLinuxChangePolicy"),
    )
    container.only(
        (*_IDENTITY, "readOnlyRootFilesystem", "capabilities", "allowPrivilegeEscalation", "privileged"),
        ("seLinuxOptions", "windowsOptions", "appArmorProfile", "procMount"),
    )

    def identity(name: str) -> Node:
        return container.at(name) if container.at(name).given else pod.at(name)

    options: list[str] = []
    user, group = identity("runAsUser"), identity("runAsGroup")
    non_root = identity("runAsNonRoot").boolean()
    if user.given:
        if non_root and user.integer() == 0:
            raise user.error("contradicts runAsNonRoot: true")
        options.append(f"--user={user.integer()}" + (f":{group.integer()}" if group.given else ""))
    elif group.given:
        raise group.error("needs a runAsUser beside it here")
    groups = [pod.at("fsGroup")] if pod.at("fsGroup").given else []
    options += [f"--group-add={entry.integer()}" for entry in [*groups, *pod.at("supplementalGroups").items()]]
    if container.at("readOnlyRootFilesystem").boolean():
        options.append("--read-only")
    capabilities = container.at("capabilities")
    capabilities.only(("add", "drop"))
    options += [f"--cap-{verb}={name}" for verb in ("drop", "add") for name in _names(capabilities.at(verb))]
    if container.at("privileged").boolean():
        options.append("--privileged")
    if not container.at("allowPrivilegeEscalation").boolean(True):
        options.append("--security-opt=no-new-privileges")
    profile = identity("seccompProfile")
    kind = profile.at("type").text("RuntimeDefault")
    if kind == "Unconfined":
        options.append("--security-opt=seccomp=unconfined")
    elif kind != "RuntimeDefault":
        raise profile.at("type").error("expected RuntimeDefault or Unconfined: profiles of a node are not here")
    return options, non_root and not user.given


def _names(node: Node) -> Sequence[str]:
    return [name.removeprefix("CAP_") for name in node.texts()]
