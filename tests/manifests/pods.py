"""What is wrong with the pods of manifests: security, resources, volumes, images, names. Each check says what."""

import posixpath
import re
from collections.abc import Sequence

from tests.manifests.rendering import (
    COMMAND,
    ROLES,
    WAIT,
    Document,
    Workload,
    environment,
    flags,
    is_ours,
    label,
    of_kind,
    quantity,
    step_of,
    workloads,
)
from tests.manifests.steps import is_output

_LABEL_1035 = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
_ISTIO = "sidecar.istio.io/inject"


def security(documents: Sequence[Document]) -> list[str]:
    """Against the restricted Pod Security Standard, and a read-only root file system."""
    problems = []
    for workload in workloads(documents):
        problems += _pod_security(workload.name, workload.pod, workload.containers)
    for service in of_kind(documents, "InferenceService"):
        problems += _pod_security(label(service), service["spec"]["predictor"], ())
    for runtime in of_kind(documents, "ServingRuntime"):
        problems += _pod_security(label(runtime), runtime["spec"], runtime["spec"]["containers"], own_context=False)
    return problems


def _pod_security(name: str, pod: Document, containers: Sequence[Document], own_context: bool = True) -> list[str]:
    problems = []
    context = pod.get("securityContext", {})
    for container in containers:
        where = f"{name}: {container['name']}"
        mine = container.get("securityContext", {})
        if mine.get("allowPrivilegeEscalation") is not False:
            problems.append(f"{where}: allowPrivilegeEscalation is not false")
        if mine.get("readOnlyRootFilesystem") is not True:
            problems.append(f"{where}: readOnlyRootFilesystem is not true")
        if mine.get("capabilities") != {"drop": ["ALL"]}:
            problems.append(f"{where}: capabilities are not dropped")
        if mine.get("privileged"):
            problems.append(f"{where}: privileged")
        if not mine.get("runAsNonRoot", context.get("runAsNonRoot")):
            problems.append(f"{where}: runAsNonRoot is not true")
        if mine.get("runAsUser", context.get("runAsUser")) == 0:
            problems.append(f"{where}: runs as root")
        if mine.get("seccompProfile", context.get("seccompProfile")) != {"type": "RuntimeDefault"}:
            problems.append(f"{where}: seccompProfile is not RuntimeDefault")
        if any("hostPort" in port for port in container.get("ports", [])):
            problems.append(f"{where}: hostPort")
    if own_context and not context:
        problems.append(f"{name}: no securityContext")
    problems += [f"{name}: {key}" for key in ("hostNetwork", "hostPID", "hostIPC") if pod.get(key)]
    allowed = {"name", "configMap", "emptyDir", "persistentVolumeClaim", "secret", "projected", "downwardAPI", "csi"}
    problems += [f"{name}: volume {sorted(volume)}" for volume in pod.get("volumes", []) if set(volume) - allowed]
    return problems


def resources(documents: Sequence[Document]) -> list[str]:
    """Requests of processor and memory, and a limit of memory that is not below the request."""
    problems = []
    for workload in workloads(documents):
        if workload.kind == "ClusterTrainingRuntime":  # a TrainJob says what it needs
            continue
        for container in workload.containers:
            given = container.get("resources", {})
            asked, limit = given.get("requests", {}), given.get("limits", {})
            where = f"{workload.name}: {container['name']}"
            problems += [f"{where}: no request of {key}" for key in ("cpu", "memory") if key not in asked]
            if "memory" not in limit:
                problems.append(f"{where}: no limit of memory")
            elif "memory" in asked and quantity(asked["memory"]) > quantity(limit["memory"]):
                problems.append(f"{where}: asks for more memory than its limit")
    return problems


def access(documents: Sequence[Document]) -> list[str]:
    """Roles are bound, to an account that comes with them; tests/kubeflow/test_access.py proves what they allow."""
    problems = []
    accounts = {entry["metadata"]["name"] for entry in of_kind(documents, "ServiceAccount")}
    roles = {entry["metadata"]["name"] for entry in of_kind(documents, "Role")}
    bound = set()
    for binding in of_kind(documents, "RoleBinding"):
        bound.add(binding["roleRef"]["name"])
        if not accounts & {subject["name"] for subject in binding["subjects"]}:
            problems.append(f"{label(binding)}: none of {sorted(accounts)} is bound")
    return problems + [f"Role {name} is not there, or bound to nobody" for name in roles ^ bound]


def fits(documents: Sequence[Document], cores: float, memory: float) -> list[str]:
    """Whether all pods, which start at once and wait for each other, can be there at the same time."""
    total = {"cpu": 0.0, "memory": 0.0}
    for workload in workloads(documents):
        for key in total:
            largest = max(quantity(entry["resources"]["requests"][key]) for entry in workload.containers)
            total[key] += largest * workload.replicas
    runtimes = {entry["metadata"]["name"]: entry for entry in of_kind(documents, "ServingRuntime")}
    for service in of_kind(documents, "InferenceService"):
        runtime = runtimes[service["spec"]["predictor"]["model"]["runtime"]]
        for key in total:
            total[key] += quantity(runtime["spec"]["containers"][0]["resources"]["requests"][key])
    found = {"cpu": cores, "memory": memory}
    return [f"all pods ask for {total[key]:g} of {key}, more than {found[key]:g}"
            for key in total if total[key] > found[key]]  # fmt: skip


def volumes(documents: Sequence[Document]) -> list[str]:
    """Mounts have their volumes, claims exist, and what a step writes is on a volume that it may write to."""
    problems = []
    claims = {claim["metadata"]["name"] for claim in of_kind(documents, "PersistentVolumeClaim")}
    for workload in workloads(documents):
        known = {volume["name"]: volume for volume in workload.pod.get("volumes", [])}
        for volume in known.values():
            claim = volume.get("persistentVolumeClaim", {}).get("claimName")
            if claim and claim not in claims and workload.kind not in ("ClusterTrainingRuntime", "TrainJob"):
                problems.append(f"{workload.name}: no claim {claim}")
        for container in workload.containers:
            mounts = container.get("volumeMounts", [])
            where = f"{workload.name}: {container['name']}"
            problems += [f"{where}: no volume {entry['name']}" for entry in mounts if entry["name"] not in known]
            if container.get("command") == COMMAND:
                problems += [f"{where}: {text}" for text in _paths(container, mounts, workload)]
                if "/tmp" not in {entry["mountPath"] for entry in mounts}:
                    problems.append(f"{where}: nothing writable at /tmp")
    return problems


def _paths(container: Document, mounts: Sequence[Document], workload: Workload) -> list[str]:
    problems = []
    step = step_of(container["image"])
    collected = workload.document.get("collected")  # Katib mounts a volume there
    places = {entry["mountPath"]: not entry.get("readOnly", False) for entry in mounts}
    if collected:
        places[collected] = True
    if "STORAGE_URI" in environment(container):  # KServe mounts it there
        places["/mnt/models"] = False
    for flag, values in flags(container).items():
        for value in values:
            if not value.startswith("/"):
                continue
            if posixpath.normpath(value) != value:
                problems.append(f"{flag}={value}: not a plain path")
            place = max((place for place in places if f"{value}/".startswith(f"{place}/")), key=len, default=None)
            if place is None:
                problems.append(f"{flag}={value}: no volume is mounted there")
            elif is_output(step, flag) and not places[place]:
                problems.append(f"{flag}={value}: {place} is mounted read-only")
    return problems


def images(documents: Sequence[Document], known: Sequence[str]) -> list[str]:
    """Every image is one that the component manifests/images names, with a tag, and is not pulled again when there."""
    problems = []
    containers = [(workload.name, entry) for workload in workloads(documents) for entry in workload.containers]
    for runtime in of_kind(documents, "ServingRuntime"):
        containers += [(label(runtime), entry) for entry in runtime["spec"]["containers"]]
    for name, container in containers:
        if container["image"] not in known:
            problems.append(f"{name}: {container['image']} is not in manifests/images")
        if container.get("imagePullPolicy") != "IfNotPresent":
            problems.append(f"{name}: imagePullPolicy is not IfNotPresent")
        if is_ours(container) and container.get("command") not in (COMMAND, WAIT):
            problems.append(f"{name}: {container['name']}: command {container.get('command')}, expected {COMMAND}")
    problems += [
        f"{label(job)}: {job['spec']['trainer']['image']} is not in manifests/images"
        for job in of_kind(documents, "TrainJob")
        if job["spec"]["trainer"]["image"] not in known
    ]
    return problems


def names(documents: Sequence[Document]) -> list[str]:
    """Names are DNS labels, those of pods too, and everything is in the namespace that comes with it."""
    problems = []
    namespaces = {entry["metadata"]["name"] for entry in of_kind(documents, "Namespace")}
    seen = set()
    for document in documents:
        name, space = document["metadata"]["name"], document["metadata"].get("namespace")
        if not _LABEL_1035.fullmatch(name):
            problems.append(f"{label(document)}: not a DNS-1035 label")
        if label(document) in seen:
            problems.append(f"{label(document)}: twice")
        seen.add(label(document))
        cluster_wide = document["kind"] in ("Namespace", "ClusterTrainingRuntime")
        if cluster_wide and space is not None:
            problems.append(f"{label(document)}: has a namespace, but is of the whole cluster")
        if not cluster_wide and (space is None or (namespaces and space not in namespaces)):
            problems.append(f"{label(document)}: namespace {space}")
        problems += [f"{label(document)}: {text}" for text in _pod_names(document)]
    return problems


def _pod_names(document: Document) -> list[str]:
    name, spec = document["metadata"]["name"], document.get("spec", {})
    made = []
    if document["kind"] == "TFJob":
        made = [f"{name}-{ROLES.get(role, role)}-{replica.get('replicas', 1) - 1}"
                for role, replica in spec["tfReplicaSpecs"].items()]  # fmt: skip
    elif document["kind"] == "TrainJob":
        made = [f"{name}-node-0-{spec['trainer']['numNodes'] - 1}"]
    elif document["kind"] == "Experiment" and spec["trialTemplate"]["trialSpec"]["kind"] == "TFJob":
        made = [f"{name}-abcd1234-evaluator-10"]
    elif document["kind"] == "InferenceService":
        made = [f"{name}-predictor-00001-deployment"]
    return [f"the name {pod} has more than 63 characters" for pod in made if len(pod) > 63]


def annotations(documents: Sequence[Document]) -> list[str]:
    """No sidecar of Istio, which would keep a pod from ending."""
    return [
        f"{workload.name}: annotation {_ISTIO} is not false"
        for workload in workloads(documents)
        if workload.kind != "InferenceService"
        and workload.template.get("metadata", {}).get("annotations", {}).get(_ISTIO) != "false"
    ]


def selectors(documents: Sequence[Document]) -> list[str]:
    """Deployments select their own pods, Services some Deployment's, by a port that it has."""
    problems = []
    templates = {}
    for deployment in of_kind(documents, "Deployment"):
        template = deployment["spec"]["template"]
        labels = template["metadata"]["labels"]
        templates[label(deployment)] = (labels, template["spec"]["containers"])
        if not deployment["spec"]["selector"]["matchLabels"].items() <= labels.items():
            problems.append(f"{label(deployment)}: does not select its own pods")
    for service in of_kind(documents, "Service"):
        spec = service["spec"]
        chosen = [entry for labels, entry in templates.values() if spec["selector"].items() <= labels.items()]
        if len(chosen) != 1:
            problems.append(f"{label(service)}: selects {len(chosen)} deployments")
            continue
        ports = {port["name"]: port["containerPort"] for entry in chosen[0] for port in entry.get("ports", [])}
        for port in spec["ports"]:
            if port["targetPort"] not in ports:
                problems.append(f"{label(service)}: no port {port['targetPort']}")
            elif f"--port={ports[port['targetPort']]}" not in chosen[0][0]["args"]:
                problems.append(f"{label(service)}: nothing listens on {ports[port['targetPort']]}")
    return problems
