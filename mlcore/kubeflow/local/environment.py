"""Environment, command and arguments of a container, with what Kubernetes expands in them."""

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass

from mlcore.kubeflow.local.node import Node

_REFERENCE = re.compile(r"\$(\$|\(([^()]*)\))")
_KEYED_FIELD = re.compile(r"metadata\.(labels|annotations)\['([^']+)'\]")


def expand(text: str, values: Mapping[str, str]) -> str:
    """`$(NAME)` becomes the variable's value where there is one, `$$` becomes `$`."""

    def replaced(match: re.Match[str]) -> str:
        if match[1] == "$":
            return "$"
        return values.get(match[2], match[0])

    return _REFERENCE.sub(replaced, text)


@dataclass(frozen=True)
class PodFacts:
    """What a container can ask about its pod.

    Attributes:
        name: Of the pod.
        namespace: Of the pod.
        labels: Of the pod.
        annotations: Of the pod.
        files: ConfigMaps and Secrets of the manifest.
    """

    name: str
    namespace: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    files: Mapping[tuple[str, str], Node]

    def field(self, node: Node) -> str:
        """The value of a `fieldPath`."""
        path = node.text()
        if match := _KEYED_FIELD.fullmatch(path):
            return (self.labels if match[1] == "labels" else self.annotations).get(match[2], "")
        plain = {
            "metadata.name": self.name,
            "metadata.namespace": self.namespace,
            "spec.nodeName": "local",
            "spec.serviceAccountName": "default",
        }
        if path not in plain:
            raise node.error(f"not to be had here; expected one of {', '.join(plain)}, metadata.labels['...']")
        return plain[path]

    def data(self, kind: str, name: Node, optional: bool) -> dict[str, bytes]:
        """Key -> content of a ConfigMap or a Secret, which must be in the manifest too."""
        node = self.files.get((kind, name.text()))
        if node is None:
            if optional:
                return {}
            raise name.error(f"no such {kind} in the manifest; add it as a document of its own")
        content = {key: value.text().encode() for key, value in node.at("data").entries() if kind == "ConfigMap"}
        encoded = node.at("binaryData" if kind == "ConfigMap" else "data")
        content |= {key: _decoded(value) for key, value in encoded.entries()}
        content |= {key: value.text().encode() for key, value in node.at("stringData").entries()}
        return content


def _decoded(node: Node) -> bytes:
    try:
        return base64.b64decode(node.text(), validate=True)
    except ValueError as error:
        raise node.error("expected base64", show=False) from error


def environment_of(container: Node, facts: PodFacts) -> dict[str, str]:
    """The variables of a container."""
    values: dict[str, str] = {}
    for source in container.at("envFrom").items():
        source.only(("prefix", "configMapRef", "secretRef"))
        for kind, key in (("ConfigMap", "configMapRef"), ("Secret", "secretRef")):
            reference = source.at(key)
            if reference.given:
                content = facts.data(kind, reference.at("name"), reference.at("optional").boolean())
                prefix = source.at("prefix").text("")
                values |= {prefix + name: _text(value, reference) for name, value in content.items()}
    for entry in container.at("env").items():
        entry.only(("name", "value", "valueFrom"))
        name = entry.at("name").text()
        if not name or "=" in name:
            raise entry.at("name").error("expected the name of a variable")
        value = _from(entry.at("valueFrom"), facts) if entry.at("valueFrom").given else entry.at("value").text("")
        if value is not None:
            values[name] = expand(value, values) if not entry.at("valueFrom").given else value
    return values


def _from(node: Node, facts: PodFacts) -> str | None:
    node.only(("fieldRef", "configMapKeyRef", "secretKeyRef"))
    if node.at("fieldRef").given:
        return facts.field(node.at("fieldRef").at("fieldPath"))
    for kind, key in (("ConfigMap", "configMapKeyRef"), ("Secret", "secretKeyRef")):
        reference = node.at(key)
        if reference.given:
            optional = reference.at("optional").boolean()
            content = facts.data(kind, reference.at("name"), optional)
            if reference.at("key").text() in content:
                return _text(content[reference.at("key").text()], reference)
            if optional:
                return None
            raise reference.at("key").error(f"the {kind} has no such key")
    raise node.error("expected fieldRef, configMapKeyRef or secretKeyRef")


def _text(value: bytes, node: Node) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise node.error("its content is no text", show=False) from error


def command_of(container: Node, values: Mapping[str, str]) -> tuple[list[str], tuple[str, ...]]:
    """The option for the entry point, and the arguments after the image.

    `command` replaces the image's entry point and its command, `args` the command alone.
    """
    command = [expand(text, values) for text in container.at("command").texts()]
    arguments = [expand(text, values) for text in container.at("args").texts()]
    if not command:
        return [], tuple(arguments)
    return [f"--entrypoint={command[0]}"], (*command[1:], *arguments)
