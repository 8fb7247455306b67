"""Kustomizations rendered, and the pods that the objects in them make."""

import copy
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mlcore.cli import STEPS

Document = dict[str, Any]

COMMAND = ["dumb-init", "--single-child", "--", "python", "/opt/step"]
WAIT = ["dumb-init", "--", "sh", "-c"]
ROLES = {"Chief": "chief", "Worker": "worker", "PS": "ps", "Evaluator": "evaluator"}  # of a TFJob -> of TF_CONFIG
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def render(folder: Path) -> list[Document]:
    """What `kubectl apply -k` of a folder would send."""
    kubectl = Path(sys.executable).with_name("kubectl")
    done = subprocess.run([kubectl, "kustomize", str(folder)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.load_all(done.stdout, _LOADER) if document]


@dataclass
class Workload:
    """A kind of pod: the object that makes it, and the pod's own specification.

    Attributes:
        owner: The object, such as `Job/pets-convert`.
        kind: Kind of the object that runs the pods: of a trial, the trial's own.
        role: Of a member of a TFJob, its key in tfReplicaSpecs.
        replicas: How many pods there are at a time.
        template: The pod template.
        main: Name of the container that does the work.
        document: The object that runs the pods.
    """

    owner: str
    kind: str
    template: Document
    main: str
    document: Document
    role: str = ""
    replicas: int = 1
    containers: list[Document] = field(init=False)

    def __post_init__(self) -> None:
        pod = self.pod
        self.containers = [*pod.get("initContainers", []), *pod["containers"]]

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.owner} {self.role}".strip()

    @property
    def pod(self) -> Document:
        """The pod's specification."""
        spec: Document = self.template["spec"]
        return spec

    @property
    def step(self) -> Document:
        """The container that does the work; the first one where none has its name."""
        containers = self.pod["containers"]
        return next((container for container in containers if container["name"] == self.main), containers[0])

    @property
    def wait(self) -> Document | None:
        """The init container that waits for the input."""
        return next((entry for entry in self.pod.get("initContainers", []) if entry["name"] == "wait"), None)


def label(document: Document) -> str:
    """`Job/pets-convert`."""
    return f"{document['kind']}/{document['metadata']['name']}"


def find(documents: Sequence[Document], kind: str, name: str | None = None) -> Document:
    """The object of a kind, and of a name where there are several."""
    (found,) = [entry for entry in documents if entry["kind"] == kind and name in (None, entry["metadata"]["name"])]
    return found


def of_kind(documents: Sequence[Document], kind: str) -> list[Document]:
    """All objects of a kind."""
    return [document for document in documents if document["kind"] == kind]


def step_of(image: str) -> str:
    """`convert` of `registry.example.org/ml/convert:latest`."""
    return re.sub(r"[:@].*", "", image.rpartition("/")[2])


def is_ours(container: Document) -> bool:
    """Whether the container has the image of a step, or claims to."""
    return step_of(container["image"]) in STEPS or container.get("command") == COMMAND


def workloads(documents: Sequence[Document]) -> Iterator[Workload]:
    """Every kind of pod that the objects make, pods of Katib's trials included."""
    for document in documents:
        yield from _of(document, label(document), documents)


def _of(document: Document, owner: str, documents: Sequence[Document]) -> Iterator[Workload]:
    kind, spec = document["kind"], document.get("spec", {})
    if kind == "Job":
        yield Workload(owner, kind, spec["template"], "step", document, replicas=spec.get("parallelism", 1))
    elif kind == "Deployment":
        template = spec["template"]
        yield Workload(owner, kind, template, template["spec"]["containers"][0]["name"], document,
                       replicas=spec.get("replicas", 1))  # fmt: skip
    elif kind == "TFJob":
        for role, replica in spec["tfReplicaSpecs"].items():
            yield Workload(owner, kind, replica["template"], "tensorflow", document, role, replica.get("replicas", 1))
    elif kind == "Experiment":
        for trial in trials(document):
            yield from _of(trial, owner, documents)
    elif kind == "ClusterTrainingRuntime":
        for job in spec["template"]["spec"]["replicatedJobs"]:
            job_spec = job["template"]["spec"]
            yield Workload(owner, kind, job_spec["template"], "node", {"kind": kind, "metadata": {}, "spec": job_spec},
                           replicas=spec["mlPolicy"]["numNodes"])  # fmt: skip
    elif kind == "InferenceService" and "containers" in spec["predictor"]:
        yield Workload(owner, kind, {"spec": spec["predictor"]}, "kserve-container", document)
    elif kind == "TrainJob":
        runtimes = of_kind(documents, "ClusterTrainingRuntime")
        if runtimes:
            yield from _train_job(document, owner, runtimes[0])


def _train_job(job: Document, owner: str, runtime: Document) -> Iterator[Workload]:
    """The pods of a TrainJob: those of its runtime, with the trainer's own fields and the patches over them."""
    trainer = job["spec"]["trainer"]
    for workload in _of(copy.deepcopy(runtime), owner, ()):
        workload.kind, workload.replicas = "TrainJob", trainer["numNodes"]
        node = workload.step
        node.update({key: trainer[key] for key in ("image", "command", "args") if key in trainer})
        node["resources"] = trainer.get("resourcesPerNode", {})
        node["env"] = [*node.get("env", []), *trainer.get("env", [])]
        for patch in job["spec"].get("runtimePatches", []):
            for replicated in patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]:
                for init in replicated["template"]["spec"]["template"]["spec"].get("initContainers", []):
                    target = next(entry for entry in workload.containers if entry["name"] == init["name"])
                    names = {variable["name"] for variable in init["env"]}
                    target["env"] = [entry for entry in target["env"] if entry["name"] not in names] + init["env"]
        yield workload


def trials(experiment: Document) -> list[Document]:
    """The trials with the least and with the greatest values of all parameters."""
    spec = experiment["spec"]
    template = spec["trialTemplate"]
    found = []
    for end in (0, -1):
        values = {}
        for parameter in spec["parameters"]:
            space = parameter["feasibleSpace"]
            values[parameter["name"]] = (space.get("list") or [space.get("min"), space.get("max")])[end]
        trial_name = f"{experiment['metadata']['name']}-abcd1234"
        known = {
            entry["name"]: trial_name if entry["reference"] == "${trialSpec.Name}" else values.get(entry["reference"])
            for entry in template["trialParameters"]
        }
        text = yaml.safe_dump(template["trialSpec"])
        for name, value in known.items():
            text = text.replace("${trialParameters." + name + "}", str(value))
        trial = yaml.load(text, _LOADER)
        trial.setdefault("metadata", {})["name"] = trial_name
        source = spec.get("metricsCollectorSpec", {}).get("source", {})
        trial["collected"] = source.get("fileSystemPath", {}).get("path")  # Katib mounts a volume there
        found.append(trial)
    return found


def flags(container: Document) -> dict[str, list[str]]:
    """`--batch-size=32` as {"--batch-size": ["32"]}."""
    given: dict[str, list[str]] = {}
    for argument in container.get("args", []):
        name, _, value = argument.partition("=")
        given.setdefault(name, []).append(value)
    return given


def environment(container: Document) -> dict[str, str]:
    """The variables that have a value."""
    return {entry["name"]: entry.get("value", "") for entry in container.get("env", [])}


_UNITS = {"": 1, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}


def quantity(text: str | float) -> float:
    """A quantity of Kubernetes as a number."""
    match = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", str(text))
    assert match is not None and match[2] in _UNITS, text
    return float(match[1]) * _UNITS[match[2]]
