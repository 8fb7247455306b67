"""component.yaml of a step: the same signature as a component of Kubeflow Pipelines 2.

Folders are parameters, since the steps keep to paths on a volume, where training resumes and nothing is made twice;
the numbers and the report of a step are artifacts, which Pipelines shows. Optional inputs without a default have no
flag: they come with the executor input (mlcore.runtime.pipelines says why).
"""

import dataclasses
import json
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from docstring_parser import parse

from mlcore.cli import load_step
from mlcore.runtime.parameters import Parameter, parameters_of
from mlcore.runtime.pipelines import METRICS, REPORT, REPORT_FILE
from mlcore.runtime.results import result_type

IMAGE = "mlcore/{name}:latest"  # manifests.pipelines.components puts REGISTRY and TAG in their place
COMMAND = ["dumb-init", "--single-child", "--", "python", "/opt/step"]
_TYPES = {str: "String", Path: "String", int: "Integer", float: "Float", bool: "Boolean", dict: "JsonObject"}
_HEAD = "# Generated from the signature by `make steps`; changes here are lost.\n"


def component_yaml(name: str) -> str:
    """The component of a step."""
    function = load_step(name)
    documentation = parse(function.__doc__ or "")
    parameters = parameters_of(function)
    outputs = _outputs(function)
    shown = [{"name": METRICS, "type": "Metrics", "description": "Numbers among the results."}]
    if REPORT_FILE in (function.__doc__ or ""):  # a step that writes one says so
        shown.append({"name": REPORT, "type": "HTML", "description": "The step's report.html."})
    arguments = [
        f"{parameter.flag}={{{{$.inputs.parameters['{parameter.name}']}}}}"
        for parameter in parameters
        if parameter.required or parameter.default_text
    ]
    arguments += [
        f"--result-file={output['name']}={{{{$.outputs.parameters['{output['name']}'].output_file}}}}"
        for output in outputs
    ]
    arguments.append("--executor-input={{$}}")
    component = {
        "name": name,
        "description": documentation.short_description,
        "inputs": [_input(parameter) for parameter in parameters],
        "outputs": outputs + shown,
        "implementation": {
            "container": {"image": IMAGE.format(name=name), "command": COMMAND, "args": arguments},
        },
    }
    return _HEAD + yaml.safe_dump(component, sort_keys=False, width=120, allow_unicode=True)


def type_of(parameter: Parameter) -> str:
    """Its type in Pipelines."""
    return "JsonArray" if parameter.many else _TYPES[parameter.type]


def _input(parameter: Parameter) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": parameter.name, "type": type_of(parameter), "description": parameter.help}
    if parameter.default_text:
        entry["default"] = _default(parameter)
    if not parameter.required:
        entry["optional"] = True
    return entry


def _default(parameter: Parameter) -> str:
    if parameter.many or parameter.type is dict:
        return json.dumps(list(parameter.default) if parameter.many else parameter.default, default=str)
    return parameter.default_text


def _outputs(function: Callable[..., Any]) -> list[dict[str, Any]]:
    returned = result_type(function)
    assert returned is not None
    texts = {
        entry.arg_name: " ".join((entry.description or "").split()) for entry in parse(returned.__doc__ or "").params
    }
    hints = typing.get_type_hints(returned)
    return [
        {"name": field.name, "type": _result_type(hints[field.name]), "description": texts[field.name]}
        for field in dataclasses.fields(returned)
        if field.name not in (METRICS, REPORT)  # that of launch is a mapping of numbers: the artifact has them
    ]


def _result_type(hint: Any) -> str:
    """A result that may be absent is text, empty where it is: numbers cannot be."""
    return _TYPES.get(hint, "String")
