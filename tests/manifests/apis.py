"""Manifests against the definitions of Kubernetes and Kubeflow, and against what these do beyond their schemas."""

import copy
import importlib.util
import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import kubernetes_validate

from tests.manifests.rendering import Document, flags, label, of_kind, step_of, trials, workloads

VERSIONS = ("1.30", "1.37")  # of Kubernetes
_NOT_FOR_SHELL = re.compile(r"[\s'\"\\$&|;<>()*?\[\]{}#~`!]")

Validator = Callable[[Document], list[str] | None]


def definitions(folder: Path) -> Validator:
    """The check of shared/crds/validate.py: errors of a document, or None where it has no schema for its kind."""
    spec = importlib.util.spec_from_file_location("crds_validate", folder / "validate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    schemas = module.load(str(folder))
    return lambda document: module.check(document, schemas)


_known: dict[str, list[str]] = {}  # overlays share most of their objects


def schemas(documents: Sequence[Document], kubeflow: Validator) -> list[str]:
    """Strictly: unknown fields are errors. What stands inside other objects (trials, jobs) is checked too."""
    problems = []
    for document in [*documents, *_inner(documents)]:
        text = json.dumps(document, sort_keys=True)
        if text not in _known:
            _known[text] = _schema(document, kubeflow)
        problems += [f"{label(document)}: {problem}" for problem in _known[text]]
    return problems


def _schema(document: Document, kubeflow: Validator) -> list[str]:
    found = kubeflow(document)
    if found is not None:
        return found
    found = []
    for version in VERSIONS:
        try:
            kubernetes_validate.validate(document, version, strict=True)
        except kubernetes_validate.SchemaNotFoundError:
            found.append(f"no schema for {document['apiVersion']} {document['kind']} in {version}")
        except kubernetes_validate.ValidationError as error:
            found.append(f"{version}: {'.'.join(map(str, error.path))}: {error.message.splitlines()[0]}")
    return found


def _inner(documents: Sequence[Document]) -> list[Document]:
    found = []
    for experiment in of_kind(documents, "Experiment"):
        for trial in trials(experiment):
            trial.pop("collected")
            found.append(trial)
    for runtime in of_kind(documents, "ClusterTrainingRuntime"):
        for job in runtime["spec"]["template"]["spec"]["replicatedJobs"]:
            spec = copy.deepcopy(job["template"]["spec"])
            found.append({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": job["name"]}, "spec": spec})
    return found


def katib(documents: Sequence[Document], written: Mapping[str, Mapping[str, Collection[str]]]) -> list[str]:
    """Experiments: metrics that the step really writes, parameters, and a command that a shell leaves as it is.

    Args:
        documents: The objects.
        written: Kind of collector -> step -> what it writes: names of lines, or <directory>/<tag>.
    """
    problems = []
    for experiment in of_kind(documents, "Experiment"):
        problems += [f"{label(experiment)}: {text}" for text in _experiment(experiment, written)]
        namespaces = of_kind(documents, "Namespace")
        for namespace in namespaces:
            labels = namespace["metadata"].get("labels", {})
            if labels.get("katib.kubeflow.org/metrics-collector-injection") != "enabled":
                problems.append(f"{label(namespace)}: no label for Katib's collectors")
            if labels.get("pod-security.kubernetes.io/enforce") == "restricted":
                problems.append(f"{label(namespace)}: Katib's collector is not allowed there")
    return problems


def _experiment(experiment: Document, written: Mapping[str, Mapping[str, Collection[str]]]) -> list[str]:
    spec = experiment["spec"]
    template = spec["trialTemplate"]
    problems = []
    names = {parameter["name"] for parameter in spec["parameters"]}
    declared = {entry["name"] for entry in template["trialParameters"]}
    used = set(re.findall(r"\$\{trialParameters\.(\w+)\}", str(template["trialSpec"])))
    if used != declared:
        problems.append(f"parameters of the trial: {sorted(declared)} are declared, {sorted(used)} are used")
    references = {entry["reference"] for entry in template["trialParameters"]} - {"${trialSpec.Name}"}
    if references != names:
        problems.append(f"parameters of the trial refer to {sorted(references)}, the search has {sorted(names)}")
    for parameter in spec["parameters"]:
        space = parameter["feasibleSpace"]
        if "min" in space and not float(space["min"]) < float(space["max"]):
            problems.append(f"{parameter['name']}: min is not below max")
    collector = spec["metricsCollectorSpec"]["collector"]["kind"]
    source = spec["metricsCollectorSpec"].get("source", {}).get("fileSystemPath")
    objective = spec["objective"]
    metrics = [objective["objectiveMetricName"], *objective.get("additionalMetricNames", [])]
    chosen = [workload for workload in workloads([experiment]) if workload.role in ("", "Chief")]
    if template["trialSpec"]["kind"] == "TFJob" and template.get("primaryPodLabels") != {
        "training.kubeflow.org/job-role": "master"
    }:
        problems.append("primaryPodLabels do not name the chief")
    for workload in chosen:
        step = workload.step
        if template.get("primaryContainerName") != step["name"]:
            problems.append(f"primaryContainerName is not {step['name']}")
        known = written.get(collector, {}).get(step_of(step["image"]), ())
        problems += [f"{metric} is not among what {collector} finds: {sorted(known)}"
                     for metric in metrics if metric not in known]  # fmt: skip
        for text in (*step.get("command", []), *step.get("args", [])):
            if _NOT_FOR_SHELL.search(text):
                problems.append(f"{text}: a shell would change it")
        if not step.get("command"):
            problems.append("no command: Katib would ask the registry for it")
        if workload.pod.get("securityContext", {}).get("runAsUser", 0) == 0:
            problems.append("no runAsUser: Katib's collector would be root, which runAsNonRoot forbids")
        folders = flags(step).get("--model-dir", [])
        if collector == "TensorFlowEvent":
            if not source or source.get("kind") != "Directory":
                problems.append("source is no Directory")
            elif not any(f"{folder}/".startswith(f"{source['path']}/") for folder in folders):
                problems.append(f"{folders} is not in {source['path']}, where the collector looks")
    return problems


def kserve(documents: Sequence[Document]) -> list[str]:
    """InferenceServices: a runtime that is there and speaks the protocol, a claim, the ports that KServe asks."""
    problems = []
    runtimes = {entry["metadata"]["name"]: entry["spec"] for entry in of_kind(documents, "ServingRuntime")}
    for name, spec in runtimes.items():
        (container,) = spec["containers"]
        for flag, value in (
            ("--model_name", "{{.Name}}"), ("--model_base_path", "/mnt/models"), ("--port", "9000"),
            ("--rest_api_port", "8080"),
        ):  # fmt: skip
            if flags(container).get(flag) != [value]:
                problems.append(f"ServingRuntime/{name}: {flag} is not {value}")
        if container["name"] != "kserve-container":
            problems.append(f"ServingRuntime/{name}: no container kserve-container")
    claims = {entry["metadata"]["name"] for entry in of_kind(documents, "PersistentVolumeClaim")} or {"data"}
    for service in of_kind(documents, "InferenceService"):
        predictor = service["spec"]["predictor"]
        problems += [f"{label(service)}: {text}" for text in _predictor(predictor, runtimes, claims)]
    return problems


def _predictor(predictor: Document, runtimes: Mapping[str, Any], claims: Collection[str]) -> list[str]:
    problems = []
    if not 1 <= predictor.get("canaryTrafficPercent", 1) <= 99:
        problems.append("canaryTrafficPercent is not from 1 to 99")
    for container in predictor.get("containers", []):
        ports = [port["containerPort"] for port in container.get("ports", [])]
        asked = container.get("readinessProbe", {}).get("httpGet", {})
        if ports != [8080] or asked.get("port") != 8080 or flags(container).get("--http-port") != ["8080"]:
            problems.append(f"ports {ports}: expected the one that is asked, 8080")
    uris = [entry.get("value", "") for container in predictor.get("containers", [])
            for entry in container.get("env", []) if entry["name"] == "STORAGE_URI"]  # fmt: skip
    if model := predictor.get("model"):
        uris.append(model["storageUri"])
        runtime = runtimes.get(model["runtime"])
        if runtime is None:
            return [f"no runtime {model['runtime']}"]
        if model["protocolVersion"] not in runtime["protocolVersions"]:
            problems.append(f"the runtime does not speak {model['protocolVersion']}")
        if model["modelFormat"] not in runtime["supportedModelFormats"]:
            problems.append(f"the runtime does not know {model['modelFormat']}")
    for uri in uris:
        match = re.fullmatch(r"pvc://([a-z0-9-]+)/[\w./-]*\w", uri)
        if match is None or match[1] not in claims:
            problems.append(f"storageUri {uri}: expected pvc://<claim>/<path>")
        elif uri.rpartition("/")[2].isdigit():
            problems.append(f"storageUri {uri}: expected the directory above the numbered versions")
    if not uris:
        problems.append("no storageUri")
    return problems
