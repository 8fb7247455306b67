"""A job's manifest with placeholders: read, filled in, checked.

`{{name}}` and `${name}` are the same placeholder. They are replaced in the parsed document, so a value can never change
its structure; a placeholder that stands alone and unquoted takes the type of its value, as YAML would give it.
`${HOME}` and `${trialParameters.rate}`, which shells and Katib have, are no placeholders; `$${name}` stands for the
text `${name}`.
"""

import hashlib
import re
import secrets
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from mlcore.kubeflow.cluster import Object, canonical
from mlcore.runtime.errors import UsageError
from mlcore.runtime.yaml_keys import repeated_key

DIGEST = "mlcore/manifest-sha256"
_NAME = r"[A-Za-z][A-Za-z0-9_-]*"
_PLACEHOLDER = re.compile(r"\{\{(?P<braces>[^{}\n]*)\}\}|(?P<escape>\$?)\$\{(?P<dollar>" + _NAME + r")\}")
# What stands for a placeholder while the text is parsed: a plain scalar wherever it is, and nothing anybody writes.
_MARK = "mlcore-placeholder-{}-9f3a"
_MARKED = re.compile(r"mlcore-placeholder-(" + _NAME + r"?)-9f3a")
_LABEL = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")


_TIMESTAMP, _STRING = "tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:str"


def read_text(manifest: str) -> tuple[str, str]:
    """The text of a manifest, and what to call it in messages.

    Args:
        manifest: A path, `-` for standard input, or the text itself.

    Raises:
        UsageError: It cannot be read.
    """
    if manifest.strip() == "-":
        return sys.stdin.read(), "standard input"
    if "\n" in manifest or re.match(r"\s*(\{|(apiVersion|kind|metadata)\s*:)", manifest):
        return manifest, "--manifest"
    path = Path(manifest).expanduser()
    try:
        return path.read_text(), str(path)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise UsageError(
            f"--manifest={manifest}: cannot be read ({reason}); expected a file, - for standard input, or YAML text"
        ) from error


def parse_values(settings: Sequence[str]) -> dict[str, str]:
    """`name=value` texts as a mapping.

    Raises:
        UsageError: A text is of another form, or a name is given twice.
    """
    values: dict[str, str] = {}
    for text in settings:
        name, equals, value = text.partition("=")
        if not equals or not re.fullmatch(_NAME, name):
            raise UsageError(f"--set={text}: expected name=value, the name of letters, digits, _ and -")
        if values.setdefault(name, value) != value:
            raise UsageError(f"--set={text}: {name} is given twice, before as {values[name]!r}")
    return values


def render(text: str, source: str, values: Mapping[str, str]) -> Object:
    """The one object of a manifest, with every placeholder replaced.

    Raises:
        UsageError: It is not YAML, holds more or less than one object, has a placeholder without a value, or a value
            is for no placeholder.
    """
    try:
        nodes = yaml.compose_all(_mark(text, source, values), Loader=yaml.SafeLoader)
        documents = [node for node in nodes if not _is_empty(node)]
        if len(documents) != 1:
            raise UsageError(f"{source}: holds {len(documents)} documents, expected one object")
        used: set[str] = set()
        _fill(documents[0], source, values, used)
        if (twice := repeated_key(documents[0])) is not None:
            raise UsageError(f"{source}: line {twice.start_mark.line + 1}: {twice.value} is there twice")
        found = _construct(documents[0])
    except yaml.YAMLError as error:
        told = _MARKED.sub(r"{{\1}}", str(error))
        raise UsageError(f"{source}: not YAML: {told}") from error
    unknown = sorted(set(values) - used)
    if unknown:
        have = ", ".join(sorted(used)) or "none"
        raise UsageError(f"--set={unknown[0]}=...: {source} has no such placeholder; it has {have}")
    if not isinstance(found, dict):
        raise UsageError(f"{source}: expected an object with apiVersion, kind, metadata and spec")
    return found


def _is_empty(node: yaml.Node | None) -> bool:
    return node is None or (isinstance(node, yaml.ScalarNode) and node.value == "")


def _mark(text: str, source: str, values: Mapping[str, str]) -> str:
    def mark(match: re.Match[str]) -> str:
        if match["braces"] is not None:
            name = match["braces"].strip()
            if not re.fullmatch(_NAME, name):
                raise UsageError(f"{source}: {match[0]}: expected a name of letters, digits, _ and - in a placeholder")
            return _MARK.format(name)
        name = match["dollar"]
        if match["escape"]:
            return match[0][1:]
        # A variable of a shell is in capitals; it is ours only if somebody gives it a value.
        return _MARK.format(name) if name in values or name[0].islower() else match[0]

    return _PLACEHOLDER.sub(mark, text)


def _fill(node: yaml.Node, source: str, values: Mapping[str, str], used: set[str]) -> None:
    """Replace the marks of a document in place."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            _fill(key, source, values, used)
            _fill(value, source, values, used)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _fill(value, source, values, used)
    elif isinstance(node, yaml.ScalarNode):
        if _MARKED.search(node.value):
            _fill_scalar(node, source, values, used)
        if node.tag == _TIMESTAMP:  # Kubernetes reads a date as text
            node.tag = _STRING


def _fill_scalar(node: yaml.ScalarNode, source: str, values: Mapping[str, str], used: set[str]) -> None:
    def value_of(match: re.Match[str]) -> str:
        name = match[1]
        if name not in values:
            given = f" (given: {', '.join(sorted(values))})" if values else ""
            raise UsageError(
                f"{source}: line {node.start_mark.line + 1}: the placeholder {name} has no value{given}; give "
                f"--set={name}=..., or write $${{{name}}} where the text itself is meant"
            )
        used.add(name)
        return values[name]

    alone = _MARKED.fullmatch(node.value)
    node.value = _MARKED.sub(value_of, node.value)
    if alone and node.style is None:
        resolver: Any = yaml.SafeLoader("")
        node.tag = resolver.resolve(yaml.ScalarNode, node.value, (True, False))


def _construct(node: yaml.Node) -> Any:
    loader = yaml.SafeLoader("")
    try:
        return loader.construct_document(node)
    finally:
        loader.dispose()


def named(job: Object, source: str, *, unique_name: bool) -> Object:
    """The job with a name of its own: a suffix that nobody else has, where the manifest or the caller wants one.

    Raises:
        UsageError: It has no name, or one that the operators refuse.
    """
    metadata = job.get("metadata")
    if not isinstance(metadata, dict):
        raise UsageError(f"{source}: metadata is missing")
    metadata = dict(metadata)
    prefix = metadata.pop("generateName", None)
    name = metadata.get("name")
    if name is None and prefix is None:
        raise UsageError(f"{source}: metadata.name is missing")
    if name is None or unique_name:
        stem = str(prefix if name is None else f"{name}-")
        name = stem[:57] + "".join(secrets.choice("bcdfghjklmnpqrstvwxz2456789") for _ in range(5))
    if not isinstance(name, str) or not _LABEL.fullmatch(name):
        raise UsageError(
            f"{source}: metadata.name={name}: expected at most 63 lower-case letters, digits and -, a letter first "
            "(pods and services get names made from it)"
        )
    return {**job, "metadata": {**metadata, "name": name}}


def with_digest(job: Object) -> Object:
    """The job with an annotation by which a later run knows its own."""
    metadata = job["metadata"]
    named_only = {name: value for name, value in metadata.items() if name != "namespace"}  # a flag may give it as well
    digest = hashlib.sha256(canonical({**job, "metadata": named_only}).encode()).hexdigest()
    return {**job, "metadata": {**metadata, "annotations": {**(metadata.get("annotations") or {}), DIGEST: digest}}}


def is_same(wanted: Object, there: Object) -> bool:
    """Whether a job in the cluster was made from this manifest; one of another maker, whether it has all of it."""
    digest = (there["metadata"].get("annotations") or {}).get(DIGEST)
    if digest is not None:
        return bool(digest == wanted["metadata"]["annotations"][DIGEST])
    return difference(wanted["spec"], there.get("spec"), "spec") is None


def difference(wanted: Any, there: Any, path: str) -> str | None:
    """The first field that is wanted and is not so there; fields that a server adds do not count."""
    if isinstance(wanted, dict) and isinstance(there, dict):
        for key, value in wanted.items():
            if (found := difference(value, there.get(key), f"{path}.{key}")) is not None:
                return found
        return None
    if isinstance(wanted, list) and isinstance(there, list) and len(wanted) == len(there):
        for number, (left, right) in enumerate(zip(wanted, there, strict=True)):
            if (found := difference(left, right, f"{path}[{number}]")) is not None:
                return found
        return None
    return None if wanted == there or (wanted in ({}, [], None) and not there) else path
