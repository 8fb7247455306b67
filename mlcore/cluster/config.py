"""TF_CONFIG -> `Cluster`: who the members of a cluster are, and which of them this process is. No TensorFlow.

Understood is all that Kubeflow's training operator sends: `master` for the chief, the evaluator inside `cluster` (which
TensorFlow does not want there: tensorflow#46169), the sparse form of `enableDynamicWorker` in which a member knows
little but itself, and `environment`. Without TF_CONFIG the ranks of a TrainJob, a JobSet or an Indexed Job are read
(`mlcore.cluster.ranks`). Everything wrong is a `UsageError` in one line.
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

from mlcore.cluster.ranks import tf_config_from_ranks
from mlcore.runtime.errors import UsageError

Role = Literal["chief", "worker", "ps", "evaluator"]
StrategyName = Literal["one_machine", "multi_worker_mirrored", "parameter_server"]

ROLES: tuple[Role, ...] = ("chief", "worker", "ps", "evaluator")
_ALIASES = {"master": "chief"}
_ADDRESS = re.compile(r"(?P<host>\[[0-9A-Fa-f:.%]+\]|[^\s:/\[\]]+):(?P<port>[0-9]{1,5})")


@dataclass(frozen=True, order=True)
class Member:
    """One process of a cluster."""

    role: Role
    index: int
    address: str

    @property
    def name(self) -> str:
        """`worker 1 (myjob-worker-1.kubeflow.svc:2222)`, for messages."""
        return f"{self.role} {self.index} ({self.address})"

    @property
    def host(self) -> str:
        """The host without brackets of IPv6."""
        return self.address.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """The port."""
        return int(self.address.rpartition(":")[2])


@dataclass(frozen=True)
class Cluster:
    """The members of a cluster and the task of this process.

    Attributes:
        members: All members that this process knows, evaluators too, ordered by role and index.
        role: Role of this process.
        index: Its number among the members of its role.
        sparse: Whether members know only some of the others (`enableDynamicWorker`).
        environment: TF_CONFIG's `environment`, such as `cloud`.
    """

    members: tuple[Member, ...]
    role: Role
    index: int
    sparse: bool = False
    environment: str | None = None

    def of(self, *roles: Role) -> tuple[Member, ...]:
        """The members of some roles."""
        return tuple(member for member in self.members if member.role in roles)

    @property
    def me(self) -> Member:
        """The member that runs in this process.

        Raises:
            UsageError: The cluster does not tell its address (evaluator and chief of a sparse cluster).
        """
        for member in self.members:
            if (member.role, member.index) == (self.role, self.index):
                return member
        raise UsageError(f"TF_CONFIG: {self.role} {self.index} has no address in cluster")

    @property
    def chief(self) -> Member | None:
        """Who leads: the chief, or worker 0 where there is none; None where a sparse cluster does not tell."""
        if chiefs := self.of("chief"):
            return chiefs[0]
        workers = self.of("worker")
        return workers[0] if workers and not self.sparse else None

    @property
    def is_chief(self) -> bool:
        """Whether this process leads."""
        chief = self.chief
        return chief is not None and (chief.role, chief.index) == (self.role, self.index)

    @property
    def strategy(self) -> StrategyName:
        """The strategy that the roles ask for."""
        if self.of("ps") or (self.sparse and self.role in ("ps", "worker")):
            return "parameter_server"
        return "multi_worker_mirrored" if len(self.of("chief", "worker")) > 1 else "one_machine"

    def tensorflow_spec(self) -> dict[str, dict[int, str]]:
        """What TensorFlow's ClusterSpec takes: the members without the evaluators."""
        spec: dict[str, dict[int, str]] = {}
        for member in self.of("chief", "worker", "ps"):
            spec.setdefault(member.role, {})[member.index] = member.address
        return spec

    def tf_config(self) -> str:
        """The cluster as a TF_CONFIG that TensorFlow's own strategies understand."""
        spec = {role: list(members.values()) for role, members in self.tensorflow_spec().items()}
        return json.dumps({"cluster": spec, "task": {"type": self.role, "index": self.index}})


def cluster_from_environment(environ: Mapping[str, str] | None = None) -> Cluster | None:
    """The cluster that the environment describes; None where there is none (one machine).

    Raises:
        UsageError: The description is wrong.
    """
    environ = os.environ if environ is None else environ
    text = environ.get("TF_CONFIG", "").strip()
    if text:
        return parse_tf_config(text)
    ranks = tf_config_from_ranks(environ)
    return None if ranks is None else parse_tf_config(json.dumps(ranks))


def parse_tf_config(text: str) -> Cluster | None:
    """A cluster from the text of TF_CONFIG; None where it names neither cluster nor task (one machine).

    Raises:
        UsageError: Wrong JSON, an unknown role, an index out of range, no worker beside the parameter servers, or an
            address that is malformed or used twice.
    """
    try:
        config = json.loads(text)
    except ValueError as error:
        raise UsageError(f"TF_CONFIG: not JSON ({error}): {_short(text)}") from error
    if not isinstance(config, dict):
        raise UsageError(f"TF_CONFIG: expected a JSON object, not {_short(text)}")
    if not config.get("cluster") and not config.get("task"):
        return None
    role, index = _task(config.get("task"))
    cluster = config.get("cluster") or {}
    if not isinstance(cluster, dict):
        raise UsageError(f"TF_CONFIG: cluster must be an object of roles, not {_short(cluster)}")
    # The operator's sparse form: `worker` is an object of index -> address, and `ps` of a ps holds only itself.
    sparse = isinstance(cluster.get("worker"), dict)
    members: list[Member] = []
    for name, addresses in cluster.items():
        members += _members(name, addresses, only=index if sparse and name == role == "ps" else None)
    _check(members, role, index, sparse)
    environment = config.get("environment")
    if environment is not None and not isinstance(environment, str):
        raise UsageError(f"TF_CONFIG: environment must be text, not {_short(environment)}")
    return _with_chief(Cluster(tuple(sorted(members, key=_order)), role, index, sparse, environment))


def _task(task: Any) -> tuple[Role, int]:
    if not isinstance(task, dict):
        raise UsageError(f'TF_CONFIG: expected "task": {{"type": …, "index": …}}, not {_short(task)}')
    role = _role(task.get("type"), "task.type")
    index = task.get("index", 0)
    if isinstance(index, str) and re.fullmatch(r"[0-9]{1,9}", index):  # some schedulers write "1"
        index = int(index)
    if isinstance(index, bool) or not isinstance(index, int) or index < 0:
        raise UsageError(f"TF_CONFIG: task.index={_short(index)}: expected a whole number from 0")
    return role, index


def _role(name: Any, where: str) -> Role:
    role = _ALIASES.get(name, name) if isinstance(name, str) else name
    if role not in ROLES:
        raise UsageError(f"TF_CONFIG: {where}={_short(name)}: expected one of {', '.join(ROLES)} or master")
    return cast(Role, role)


def _members(name: Any, addresses: Any, only: int | None) -> list[Member]:
    """The members of one role; `only` is the index of the one member of a list in the sparse form."""
    role = _role(name, "role in cluster")
    numbered: list[tuple[int, Any]]
    if addresses is None:
        numbered = []
    elif isinstance(addresses, list):
        numbered = [(only, addresses[0])] if only is not None and len(addresses) == 1 else list(enumerate(addresses))
    elif isinstance(addresses, dict):
        bad = next((key for key in addresses if not re.fullmatch(r"[0-9]{1,9}", key)), None)
        if bad is not None:
            raise UsageError(f"TF_CONFIG: cluster.{name}: index {_short(bad)}: expected a whole number from 0")
        numbered = [(int(key), address) for key, address in addresses.items()]
    else:
        raise UsageError(f"TF_CONFIG: cluster.{name}: expected a list of host:port, not {_short(addresses)}")
    return [Member(role, index, _address(address, f"cluster.{name}[{index}]")) for index, address in numbered]


def _address(address: Any, where: str) -> str:
    match = _ADDRESS.fullmatch(address) if isinstance(address, str) else None
    if match is None or not 1 <= int(match["port"]) <= 65535:
        raise UsageError(f"TF_CONFIG: {where}={_short(address)}: expected host:port")
    return cast(str, address)


def _order(member: Member) -> tuple[int, int]:
    return ROLES.index(member.role), member.index


def _check(members: list[Member], role: Role, index: int, sparse: bool) -> None:
    places: dict[tuple[str, int], Member] = {}
    addresses: dict[str, Member] = {}
    for member in members:
        if (member.role, member.index) in places:
            raise UsageError(f"TF_CONFIG: {member.role} {member.index} is there twice (chief and master are one role)")
        places[member.role, member.index] = member
        if member.address in addresses:
            other = addresses[member.address]
            raise UsageError(
                f"TF_CONFIG: {other.role} {other.index} and {member.role} {member.index} have the same address "
                f"{member.address}"
            )
        addresses[member.address] = member
    known = {name: sum(member.role == name for member in members) for name in ROLES}
    if known["chief"] > 1:
        raise UsageError(f"TF_CONFIG: {known['chief']} chiefs in cluster: expected at most one")
    if known["ps"] and not known["worker"] and not (sparse and role == "ps"):
        raise UsageError(f"TF_CONFIG: {known['ps']} ps but no worker in cluster: expected at least one worker")
    if sparse and role == "worker" and not known["ps"]:
        raise UsageError(
            f"TF_CONFIG: worker {index} knows neither the other workers nor a ps: set enableDynamicWorker: false in "
            "the TFJob, or give it a ps"
        )
    # TensorFlow leaves the evaluator out of cluster, Kubeflow does not.
    if (role, index) in places or role == "evaluator":
        return
    if not known["worker"] and role == "chief":
        raise UsageError(
            "TF_CONFIG: the cluster is empty, so the chief cannot know its workers and parameter servers: "
            "set enableDynamicWorker: false in the TFJob"
        )
    count = known[role]
    expected = f"expected 0 to {count - 1}" if count else f"there is no {role} in cluster"
    raise UsageError(f"TF_CONFIG: task is {role} {index}: {expected}")


def _with_chief(cluster: Cluster) -> Cluster:
    """With parameter servers somebody must coordinate: without a chief worker 0 does, as in a TFJob without one."""
    workers = cluster.of("worker")
    if cluster.sparse or cluster.of("chief") or not cluster.of("ps"):
        return cluster
    if len(workers) < 2:
        raise UsageError("TF_CONFIG: ps, one worker and no chief in cluster: expected a chief or a second worker")
    members = [member for member in cluster.members if member.role in ("ps", "evaluator")]
    members.append(Member("chief", 0, workers[0].address))
    members += [Member("worker", worker.index - 1, worker.address) for worker in workers[1:]]
    role, index = cluster.role, cluster.index
    if role == "worker":
        role, index = ("chief", 0) if index == 0 else ("worker", index - 1)
    return Cluster(tuple(sorted(members, key=_order)), role, index, cluster.sparse, cluster.environment)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    text = " ".join(text.split())
    return text if len(text) <= 80 else f"{text[:77]}..."
