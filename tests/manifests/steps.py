"""Whether manifests agree with the code of the steps: flags, exit codes, who makes what for whom, clusters."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from mlcore.cli import STEPS, _common, load_step
from mlcore.cluster import ranks
from mlcore.cluster.config import Cluster, parse_tf_config
from mlcore.detection.experiment import presets
from mlcore.runtime.errors import DataError, MlcoreError, RestartError, Stopped, TransientError, UsageError
from mlcore.runtime.parameters import Parameter, parameters_of
from tests.manifests.rendering import (
    COMMAND,
    ROLES,
    Document,
    Workload,
    environment,
    flags,
    label,
    of_kind,
    step_of,
    workloads,
)

CLUSTER_PORT = 2222
CLUSTER_VARIABLES = {ranks._PREFIX + name for name in ("SIZE", "RANK", "HOSTS", "PORT", "PS", "EVALUATORS")}
TRAINING = ("train", "mnist-train")


def arguments(documents: Sequence[Document]) -> list[str]:
    """Every flag and MLCORE_ variable exists on its step with a valid value, and none that must be given is missing."""
    problems = []
    for workload in workloads(documents):
        for container in workload.containers:
            if container.get("command") == COMMAND and workload.kind != "ClusterTrainingRuntime":
                where = f"{workload.name}: {container['name']}"
                problems += [f"{where}: {text}" for text in wrong_arguments(container)]
    return problems


def wrong_arguments(container: Document, *, spaces: bool = False) -> list[str]:
    """What is wrong with the flags and variables of a container; spaces in a value are for those who pass lists."""
    step = step_of(container["image"])
    if step not in STEPS:
        return [f"no step {step}"]
    own = parameters_of(load_step(step))
    known = {parameter.flag: parameter for parameter in (*parameters_of(_common), *own)}
    by_variable = {name: parameter for parameter in own for name in parameter.env}
    problems = []
    for argument in container.get("args", []):
        plain = spaces or argument.split() == [argument]
        if not argument.startswith("--") or "=" not in argument or not plain:
            problems.append(f"{argument!r}: expected --name=value without spaces")
    given = flags(container)
    for flag, values in given.items():
        if flag not in known:
            problems.append(f"{step} has no {flag}")
            continue
        if len(values) > 1 and not known[flag].many:
            problems.append(f"{flag} is given {len(values)} times")
        problems += [text for value in values for text in _wrong(known[flag], value, flag)]
    variables = environment(container)
    for name, value in variables.items():
        if name in by_variable:
            problems += _wrong(by_variable[name], value, name)
        elif name.startswith("MLCORE_") and name not in CLUSTER_VARIABLES:
            problems.append(f"{step} has no {name}")
    problems += [
        f"{parameter.flag} is missing"
        for parameter in own
        if parameter.required and parameter.flag not in given and not set(parameter.env) & set(variables)
    ]
    return problems


def _wrong(parameter: Parameter, value: str, source: str) -> list[str]:
    try:
        parameter.convert_all(value, source)
    except MlcoreError as error:
        return [str(error)]
    if parameter.name == "preset" and value not in presets():
        return [f"{source}={value}: expected one of {', '.join(presets())}"]
    return []


def is_output(step: str, flag: str) -> bool:
    """Whether a step writes where the flag points."""
    return flag in ("--output-dir", "--export-dir") or (flag == "--model-dir" and step in TRAINING)


def exit_codes(documents: Sequence[Document]) -> list[str]:
    """What is done at each exit code of the steps, and what bounds it."""
    problems = []
    for workload in workloads(documents):
        check = {"Job": _job, "ClusterTrainingRuntime": _runtime, "TFJob": _tf_job}.get(workload.kind)
        if check:
            problems += [f"{workload.name}: {text}" for text in check(workload)]
    return problems


def _job(workload: Workload, restarts: tuple[int, ...] = (Stopped().exit_code,)) -> list[str]:
    spec = workload.document["spec"]
    problems = []
    if workload.pod.get("restartPolicy") != "Never":
        problems.append("restartPolicy is not Never, as podFailurePolicy wants it")
    if workload.main not in {container["name"] for container in workload.pod["containers"]}:
        problems.append(f"no container {workload.main}")
    actions: dict[str, set[int]] = {}
    for rule in spec.get("podFailurePolicy", {}).get("rules", []):
        codes = rule.get("onExitCodes")
        if codes is None:
            actions.setdefault(f"{rule['action']} {rule['onPodConditions'][0]['type']}", set())
            continue
        container = codes.get("containerName")
        if container is not None and container not in {entry["name"] for entry in workload.containers}:
            problems.append(f"podFailurePolicy: no container {container}")
        if codes["operator"] != "In":
            problems.append(f"podFailurePolicy: operator {codes['operator']}")
        actions.setdefault(rule["action"], set()).update(codes["values"])
    expected = {
        "Ignore DisruptionTarget": set(),
        "FailJob": {UsageError.exit_code, DataError.exit_code},
        "Ignore": set(restarts),
        "Count": {TransientError.exit_code},
    }
    if actions != expected:
        problems.append(f"podFailurePolicy: {actions}, expected {expected}")
    if not spec.get("backoffLimit"):
        problems.append("no backoffLimit")
    return problems + _bounds(workload, spec)


def _bounds(workload: Workload, spec: Mapping[str, Any]) -> list[str]:
    wanted = ["activeDeadlineSeconds", "ttlSecondsAfterFinished"]
    if workload.kind == "ClusterTrainingRuntime":  # a TrainJob has its own
        wanted = []
    elif workload.owner.startswith("Experiment"):  # Katib deletes what it makes
        wanted = ["activeDeadlineSeconds"]
    problems = [f"no {field}" for field in wanted if not spec.get(field)]
    if not 10 <= workload.pod.get("terminationGracePeriodSeconds", 30) <= 300:  # a step ends within 10 s
        problems.append("terminationGracePeriodSeconds is not from 10 to 300")
    return problems


def _runtime(workload: Workload) -> list[str]:
    return _job(workload, (RestartError.exit_code, Stopped().exit_code))


def _tf_job(workload: Workload) -> list[str]:
    policy = workload.document["spec"].get("runPolicy", {})
    replica = workload.document["spec"]["tfReplicaSpecs"][workload.role]
    problems = []
    if replica.get("restartPolicy") != "ExitCode":
        problems.append("restartPolicy is not ExitCode, so that 138 and 143 are not followed")
    if policy.get("cleanPodPolicy") != "Running":
        problems.append("cleanPodPolicy is not Running, so that members go on after the end")
    if "backoffLimit" in policy:
        problems.append("backoffLimit does not hold for ExitCode")
    return problems + _bounds(workload, policy)


def clusters(documents: Sequence[Document]) -> list[str]:
    """Members of a cluster find each other by what their orchestrator tells them, and have the same flags."""
    problems = []
    jobs: dict[int, list[Workload]] = {}
    for workload in workloads(documents):
        if workload.kind in ("TFJob", "TrainJob"):
            jobs.setdefault(id(workload.document), []).append(workload)  # the trials of a search have one name
    for members in jobs.values():
        name = members[0].owner
        if len({json.dumps([flags(entry.step), environment(entry.step)], sort_keys=True) for entry in members}) > 1:
            problems.append(f"{name}: the members have different flags")
        for member in members:
            problems += [f"{name}: {text}" for text in _member(member)]
        try:
            problems += [f"{name}: {text}" for text in _roles(members)]
        except (UsageError, KeyError) as error:
            problems.append(f"{name}: {error}")
    return problems


def _member(workload: Workload) -> list[str]:
    problems = []
    step = workload.step
    if step["name"] != workload.main:
        problems.append(f"{workload.role}: no container {workload.main}: it would get no variables")
    if step_of(step["image"]).removesuffix("-gpu") not in TRAINING:
        problems.append(f"{workload.role}: {step['image']} takes no part in a cluster")
    if {"name": "tfjob-port", "containerPort": CLUSTER_PORT} not in [
        {key: port.get(key) for key in ("name", "containerPort")} for port in step.get("ports", [])
    ]:
        problems.append(f"{workload.role}: no port tfjob-port, {CLUSTER_PORT}")
    return problems


def _roles(members: Sequence[Workload]) -> list[str]:
    wanted: dict[str, int] = {}
    seen: list[Cluster | None]
    if members[0].kind == "TrainJob":
        (node,) = members
        seen = [train_job_cluster(node, rank) for rank in range(node.replicas)]
        wanted = {"chief": 1, "ps": 1, "worker": node.replicas - 3, "evaluator": 1}
    else:
        wanted = {ROLES[member.role]: member.replicas for member in members}
        seen = [tf_job_cluster(members, member.role, index) for member in members for index in range(member.replicas)]
    if sum(wanted.values()) == 1:
        return [] if seen == [None] else ["one replica, but a cluster"]
    found: dict[str, int] = {}
    for cluster in seen:
        if cluster is None:
            return ["a member knows of no cluster"]
        found[cluster.role] = found.get(cluster.role, 0) + 1
        if cluster.strategy != "parameter_server":
            return [f"{cluster.role}: strategy {cluster.strategy}, expected parameter_server"]
    problems = [] if found == wanted else [f"roles {found}, expected {wanted}"]
    if found.get("chief") != 1:
        problems.append("no chief")
    return problems


def tf_job_cluster(members: Sequence[Workload], role: str, index: int) -> Cluster | None:
    """What a member makes of the TF_CONFIG that the training operator gives it."""
    if sum(member.replicas for member in members) == 1:
        return None
    metadata = members[0].document["metadata"]
    cluster = {
        ROLES[member.role]: [
            f"{metadata['name']}-{ROLES[member.role]}-{number}.{metadata.get('namespace', 'mlcore')}.svc:{CLUSTER_PORT}"
            for number in range(member.replicas)
        ]
        for member in members
    }
    task = {"type": ROLES[role], "index": index}
    return parse_tf_config(json.dumps({"cluster": cluster, "task": task, "environment": "cloud"}))


def train_job_cluster(node: Workload, rank: int) -> Cluster | None:
    """What a node makes of the variables that Trainer's jax policy sets."""
    name = node.owner.partition("/")[2]
    variables = {
        **environment(node.step),
        "JAX_NUM_PROCESSES": str(node.replicas),
        "JAX_PROCESS_ID": str(rank),
        "JAX_COORDINATOR_ADDRESS": f"{name}-node-0-0.{name}:6666",
        "JOB_COMPLETION_INDEX": str(rank),
    }
    config = ranks.tf_config_from_ranks(variables)
    return None if config is None else parse_tf_config(json.dumps(config))


def indexed(documents: Sequence[Document]) -> list[str]:
    """Indexed Jobs: as many pods as the step was told of, each of which knows its number."""
    problems = []
    for workload in workloads(documents):
        if workload.kind != "Job":
            continue
        spec, step = workload.document["spec"], workload.step
        count = int(flags(step).get("--shard-count", ["1"])[0])
        if spec.get("completions", 1) != count:
            problems.append(f"{workload.name}: {spec.get('completions', 1)} completions, --shard-count={count}")
        if count == 1:
            continue
        if spec.get("completionMode") != "Indexed":
            problems.append(f"{workload.name}: completionMode is not Indexed")
        parameters = parameters_of(load_step(step_of(step["image"])))
        if not any("JOB_COMPLETION_INDEX" in parameter.env for parameter in parameters):
            problems.append(f"{workload.name}: the step does not read JOB_COMPLETION_INDEX")
        if "--shard-index" in flags(step):
            problems.append(f"{workload.name}: all pods have the same --shard-index")
    return problems


def flow(documents: Sequence[Document]) -> list[str]:
    """Every input is made by some pod that comes with it, and a pod waits for the last of its inputs."""
    made: dict[str, str] = {}  # folder -> who makes it
    needed: dict[str, set[str]] = {}
    waits: dict[str, str] = {}
    for workload in workloads(documents):
        if workload.step.get("command") != COMMAND or workload.kind == "ClusterTrainingRuntime":
            continue
        step = step_of(workload.step["image"])
        inputs = needed.setdefault(workload.owner, set())
        for flag, values in flags(workload.step).items():
            for value in filter(lambda value: value.startswith("/data/"), values):
                if is_output(step, flag):
                    made[value] = workload.owner
                else:
                    inputs.add(value)
        waits[workload.owner] = _waited_for(workload)
    problems = []
    makers = {owner: {path: _maker(path, made) for path in inputs} for owner, inputs in needed.items()}
    for owner, sources in makers.items():
        problems += [f"{owner}: nothing makes {path}" for path, maker in sources.items() if maker is None]
        others = {maker for maker in sources.values() if maker and maker != owner}
        if not others:
            continue
        waited = _maker(waits[owner], made) if waits[owner] else None
        if waited not in others:
            problems.append(f"{owner}: waits for {waits[owner] or 'nothing'}, expected something of {sorted(others)}")
        elif not others <= _before(waited, makers) | {waited}:
            problems.append(f"{owner}: does not wait for {sorted(others - _before(waited, makers) - {waited})}")
    for service in of_kind(documents, "InferenceService"):
        model = service["spec"]["predictor"].get("model")
        path = "/data/" + model["storageUri"].partition("://data/")[2] if model else ""
        if made and model and path not in made:
            problems.append(f"{label(service)}: nothing exports to {path}")
    for workload in workloads(documents):
        for path in flags(workload.step).get("--logdir", []):
            if made and path not in made:
                problems.append(f"{workload.name}: nothing writes curves to {path}")
    return problems


def patience(documents: Sequence[Document]) -> list[str]:
    """No pod gives up waiting before the time of its job is over."""
    problems = []
    for workload in workloads(documents):
        if workload.wait is None or workload.kind in ("ClusterTrainingRuntime", "TrainJob"):
            continue
        spec = workload.document["spec"]
        seconds = int(workload.wait["args"][2])
        deadline = spec.get("runPolicy", spec).get("activeDeadlineSeconds", 0)
        if seconds < deadline:
            problems.append(f"{workload.name}: waits {seconds} s, has {deadline} s")
    return problems


def _waited_for(workload: Workload) -> str:
    wait = workload.wait
    if wait is None:
        return ""
    variables = environment(wait)
    return variables["WAIT_FOR"] if "WAIT_FOR" in variables else wait["args"][1]


def _maker(path: str, made: Mapping[str, str]) -> str | None:
    return next((owner for folder, owner in made.items() if f"{path}/".startswith(f"{folder}/")), None)


def _before(owner: str, makers: Mapping[str, Mapping[str, str | None]]) -> set[str]:
    found: set[str] = set()
    for maker in makers.get(owner, {}).values():
        if maker and maker != owner and maker not in found:
            found |= {maker} | _before(maker, makers)
    return found
