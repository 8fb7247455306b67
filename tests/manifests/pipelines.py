"""What is wrong with a compiled pipeline: its form by the parsers of Pipelines, its tasks by the code of the steps."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from google.protobuf import json_format
from kfp.kubernetes import kubernetes_executor_config_pb2
from kfp.pipeline_spec import pipeline_spec_pb2

from mlcore.cli import STEPS, load_step
from mlcore.runtime.errors import UsageError
from mlcore.runtime.parameters import parameters_of
from mlcore.runtime.results import names_of
from tests.manifests.rendering import COMMAND, Document, step_of
from tests.manifests.steps import wrong_arguments

MOUNT = "/data"
SAMPLE = f"{MOUNT}/made-by-another-task"
_INPUT = re.compile(r"\{\{\$\.inputs\.parameters\['([^']+)'\]\}\}")
_OUTPUT = re.compile(r"\{\{\$\.outputs\.parameters\['([^']+)'\]\.output_file\}\}")


def form(documents: Sequence[Document]) -> list[str]:
    """Parsed strictly: the pipeline, its executors and what Kubernetes is told; unknown fields are errors."""
    spec, platform = documents
    kubernetes = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    parts: list[tuple[str, Any, Any]] = [
        ("pipeline", spec, pipeline_spec_pb2.PipelineSpec()),
        ("deploymentSpec", spec["deploymentSpec"], pipeline_spec_pb2.PipelineDeploymentConfig()),
        ("platform", platform, pipeline_spec_pb2.PlatformSpec()),
    ]
    parts += [
        (name, executor, kubernetes_executor_config_pb2.KubernetesExecutorConfig())
        for name, executor in kubernetes.items()
    ]
    problems = []
    for name, content, message in parts:
        try:
            json_format.ParseDict(content, message)
        except json_format.ParseError as error:
            problems.append(f"{name}: {error}")
    return problems


def tasks(documents: Sequence[Document], images: Sequence[str]) -> list[str]:
    """Images, commands, flags with the values that they get, outputs, volumes, resources, tries."""
    spec, platform = documents
    kubernetes = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    problems = []
    defaults = {
        name: entry.get("defaultValue") for name, entry in spec["root"]["inputDefinitions"]["parameters"].items()
    }
    for name, task, given in _walk(spec, spec["root"], defaults):
        component = spec["components"][task["componentRef"]["name"]]
        label = component["executorLabel"]
        container = spec["deploymentSpec"]["executors"].get(label, {}).get("container", {})
        found = _container(container, component, images)
        if not found:
            found += _values(container, component, _inputs(task, component, given))
        found += _running(task, container, kubernetes.get(label, {}))
        problems += [f"{name}: {text}" for text in found]
    return problems


def _walk(
    spec: Document, owner: Document, given: Mapping[str, Any]
) -> Iterator[tuple[str, Document, Mapping[str, Any]]]:
    """The tasks of a component, those of conditions inside it too, with the inputs of the component."""
    for name, task in owner["dag"]["tasks"].items():
        component = spec["components"][task["componentRef"]["name"]]
        if "dag" in component:
            yield from _walk(spec, component, _inputs(task, component, given))
        else:
            yield name, task, given


def _container(container: Document, component: Document, images: Sequence[str]) -> list[str]:
    if not container or step_of(container.get("image", "")) not in STEPS:
        return [f"image {container.get('image')} is of no step"]
    problems = []
    step = step_of(container["image"])
    if container["image"] not in images:
        problems.append(f"{container['image']} is not in manifests/images")
    if container.get("command") != COMMAND:
        problems.append(f"command {container.get('command')}, expected {COMMAND}")
    known = component["inputDefinitions"]["parameters"]
    made = component["outputDefinitions"]["parameters"]
    for argument in container.get("args", []):
        problems += [f"{argument}: no such input" for entry in _INPUT.findall(argument) if entry not in known]
        problems += [f"{argument}: no such output" for entry in _OUTPUT.findall(argument) if entry not in made]
        if argument.startswith("{"):
            problems.append(f"{argument}: the backend does not resolve this")
    wanted = {f"--result-file={name}={{{{$.outputs.parameters['{name}'].output_file}}}}" for name in made}
    if not wanted <= set(container["args"]) or set(made) != set(names_of(load_step(step))) - {"metrics"}:
        problems.append("the outputs are not the results of the step")
    if "--executor-input={{$}}" not in container["args"]:
        problems.append("no --executor-input, which has the optional inputs")
    return problems


def _inputs(task: Document, component: Document, given: Mapping[str, Any]) -> dict[str, Any]:
    """The values that a task gets with the pipeline's defaults."""
    values = {
        name: entry["defaultValue"]
        for name, entry in component["inputDefinitions"]["parameters"].items()
        if "defaultValue" in entry
    }
    for name, source in task.get("inputs", {}).get("parameters", {}).items():
        if "componentInputParameter" in source:
            values[name] = given.get(source["componentInputParameter"])
        elif "taskOutputParameter" in source:
            values[name] = SAMPLE
        else:
            values[name] = source["runtimeValue"]["constant"]
    return {name: _filled(value, values) for name, value in values.items()}


def _filled(value: Any, values: Mapping[str, Any]) -> Any:
    if isinstance(value, list):
        return [_filled(member, values) for member in value]
    if not isinstance(value, str):
        return value
    return _INPUT.sub(lambda match: str(values[match[1]]), value)


def _text(value: Any) -> str:
    """As Pipelines puts it in the place of a placeholder."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return value if isinstance(value, str) else json.dumps(value)


def _values(container: Document, component: Document, values: Mapping[str, Any]) -> list[str]:
    resolved = []
    used = set()
    for argument in container["args"]:
        if argument.startswith("--executor-input"):
            continue
        used |= set(_INPUT.findall(argument))
        text = _INPUT.sub(lambda match: _text(values.get(match[1], "")), argument)
        resolved.append(_OUTPUT.sub("/tmp/out", text))
    problems = wrong_arguments({"image": container["image"], "args": resolved}, spaces=True)
    parameters = {parameter.name: parameter for parameter in parameters_of(load_step(step_of(container["image"])))}
    for name, value in values.items():
        if name in used or name.startswith("pipelinechannel--"):
            continue
        if name not in parameters:
            problems.append(f"no parameter {name}")
            continue
        try:
            parameters[name].convert_all(value, name)
        except UsageError as error:
            problems.append(str(error))
    paths = [str(value) for value in values.values() if isinstance(value, str) and value.startswith("/")]
    return problems + [f"{path}: not on the volume" for path in paths if not path.startswith(f"{MOUNT}/")]


def _running(task: Document, container: Document, kubernetes: Document) -> list[str]:
    problems = []
    if [mount["mountPath"] for mount in kubernetes.get("pvcMount", [])] != [MOUNT]:
        problems.append(f"no claim at {MOUNT}")
    if kubernetes.get("securityContext", {}).get("runAsNonRoot") is not True:
        problems.append("may run as root")
    resources = container.get("resources", {})
    for key in ("resourceCpuRequest", "resourceMemoryRequest", "resourceMemoryLimit"):
        if key not in resources:
            problems.append(f"no {key}")
    if not task.get("retryPolicy", {}).get("maxRetryCount"):
        problems.append("no second try")
    if "activeDeadlineSeconds" not in kubernetes:
        problems.append("no bound of time")
    if task.get("cachingOptions", {}).get("enableCache"):
        problems.append("Pipelines' cache is on, which does not see what is on the volume")
    return problems
