"""The REST of TensorFlow Serving, which KServe calls V1: `/v1/models/<name>[/versions/<n>]:predict`, rows as JSON.

Bytes travel as `{"b64": "..."}`. KServe's own servers tell no metadata in V1; then their V2 address is asked for it.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

import numpy as np

from mlcore.serving.clients.client import (
    SERVING_DEFAULT,
    Array,
    Metadata,
    ModelClient,
    NotServedError,
    RequestRefusedError,
    Server,
    ServerFailedError,
    Signature,
    TensorSpec,
    as_bytes,
    is_texts,
)
from mlcore.serving.clients.http_channel import HttpChannel
from mlcore.serving.clients.tensor_proto import DTYPE_NAMES, DTYPES
from mlcore.serving.clients.v2 import metadata_of

_JSON = {"Content-Type": "application/json"}
_BASE64_SUFFIX = "_bytes"  # TensorFlow Serving encodes the outputs whose names end so


class V1Client(ModelClient):
    """A client of TensorFlow Serving's REST, or of a KServe server that speaks V1."""

    protocol = "v1"

    def __init__(self, server: Server, model_name: str, deadline_s: float = 60.0) -> None:
        super().__init__(server, model_name, deadline_s)
        self._http = HttpChannel(server, str(self))
        self._known: dict[int | None, Metadata | None] = {}

    def close(self) -> None:
        self._http.close()

    def _path(self, version: int | None, suffix: str = "") -> str:
        of_version = f"/versions/{version}" if version is not None else ""
        return f"/v1/models/{quote(self.model_name, safe='')}{of_version}{suffix}"

    def _predict(
        self, inputs: Mapping[str, Array], signature: str | None, version: int | None, timeout_s: float
    ) -> dict[str, Array]:
        body: dict[str, Any] = {}
        if signature is not None:
            body["signature_name"] = signature
        lengths = {array.shape[:1] for array in inputs.values()}
        by_row = len(lengths) == 1 and lengths not in ({()}, {(0,)})
        plain = {name: _plain(array) for name, array in inputs.items()}
        if by_row and len(plain) == 1:
            (rows,) = plain.values()
            # A row of bytes is an object itself, so that it must be named for a server to tell the two apart.
            (name,) = plain
            body["instances"] = [{name: row} for row in rows] if is_texts(inputs[name]) else rows
        elif by_row:
            body["instances"] = [dict(zip(plain, row, strict=True)) for row in zip(*plain.values(), strict=True)]
        else:
            body["inputs"] = plain
        content = json.dumps(body, separators=(",", ":")).encode()
        answer = self._http.send("POST", self._path(version, ":predict"), timeout_s, content, _JSON)
        specs = self._output_specs(signature, version, timeout_s)
        return self._outputs(self._http.read_json(answer.content), specs)

    def _outputs(self, found: Mapping[str, Any], specs: Mapping[str, TensorSpec]) -> dict[str, Array]:
        """Arrays of an answer in rows (`predictions`) or columns (`outputs`)."""
        if "predictions" in found:
            rows = found["predictions"]
            if isinstance(rows, list) and rows and all(isinstance(row, dict) and "b64" not in row for row in rows):
                columns = {name: [row.get(name) for row in rows] for name in rows[0]}
            elif isinstance(rows, dict):
                columns = rows
            elif rows == [] and specs:
                columns = {name: [] for name in specs}
            else:
                columns = {_only(specs): rows}
        elif "outputs" in found:
            outputs = found["outputs"]
            named = isinstance(outputs, dict) and "b64" not in outputs
            columns = outputs if named else {_only(specs): outputs}
        else:
            raise ServerFailedError(f"{self}: the answer has neither predictions nor outputs")
        try:
            return {name: _array(name, values, specs.get(name)) for name, values in sorted(columns.items())}
        except (ValueError, TypeError) as error:
            raise ServerFailedError(f"{self}: an output cannot be read as an array: {error}") from error

    def _output_specs(self, signature: str | None, version: int | None, timeout_s: float) -> Mapping[str, TensorSpec]:
        """What is known of the outputs; JSON does not tell the types of numbers."""
        if version not in self._known:
            try:
                self._known[version] = self._metadata(version, timeout_s)
            except (NotServedError, RequestRefusedError):
                self._known[version] = None
        known = self._known[version]
        found = known.signatures.get(signature or SERVING_DEFAULT) if known is not None else None
        return found.outputs if found is not None else {}

    def _metadata(self, version: int | None, timeout_s: float) -> Metadata:
        try:
            answer = self._http.send("GET", self._path(version, "/metadata"), timeout_s)
        except (NotServedError, RequestRefusedError) as missing:
            path = f"/v2/models/{quote(self.model_name, safe='')}"
            try:
                other = self._http.read_json(self._http.send("GET", path, timeout_s).content)
            except (NotServedError, RequestRefusedError, ServerFailedError):
                raise missing from None
            return metadata_of(other)
        found = self._http.read_json(answer.content)
        try:
            signatures = {
                name: Signature(_specs(entry.get("inputs", {})), _specs(entry.get("outputs", {})))
                for name, entry in sorted(found["metadata"]["signature_def"]["signature_def"].items())
                if not name.startswith("__saved_model")
            }
            number = int(found.get("model_spec", {}).get("version") or 0) or None
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ServerFailedError(f"{self}: the metadata is not TensorFlow Serving's: {error!r}") from error
        return Metadata(signatures, True, number)

    def _status(self, timeout_s: float) -> dict[str, Any]:
        found = self._http.read_json(self._http.send("GET", self._path(None), timeout_s).content)
        return dict(found)

    def _versions(self, timeout_s: float) -> dict[int, str]:
        entries = self._status(timeout_s).get("model_version_status", [])
        return {int(entry["version"]): str(entry["state"]) for entry in entries}

    def _why_not_ready(self, timeout_s: float) -> str:
        found = self._status(timeout_s)
        if "model_version_status" in found:
            states = {entry.get("version"): entry.get("state") for entry in found["model_version_status"]}
            if "AVAILABLE" in states.values():
                return ""
            return f"{self}: " + (
                "; ".join(f"version {version} is {state}" for version, state in states.items()) or "no version of it"
            )
        ready = str(found.get("ready", "")).lower() == "true"
        return "" if ready else f"{self}: ready is {found.get('ready')!r}"


def _only(specs: Mapping[str, TensorSpec]) -> str:
    """The name of the only output, which JSON leaves out."""
    return next(iter(specs)) if len(specs) == 1 else "output_0"


def _plain(array: Array) -> Any:
    """An array as JSON has it."""
    if not is_texts(array):
        return array.tolist()
    encoded = [{"b64": base64.b64encode(value).decode()} for value in as_bytes(array).ravel()]
    values = np.empty(len(encoded), dtype=object)
    values[:] = encoded
    return values.reshape(array.shape).tolist()


def _array(name: str, values: Any, spec: TensorSpec | None) -> Array:
    """An output of JSON as an array of its type; numbers of an unknown type are float32 or int64."""
    if spec is not None and not spec.is_bytes and spec.dtype.kind != "V":
        array = np.asarray(values, spec.dtype)
        if not array.size and spec.shape is not None:
            array = array.reshape([max(length, 0) for length in spec.shape])
        return array
    if spec is not None or _has_text(values):
        return as_bytes(_decoded(values, name))
    array = np.asarray(values)
    if array.dtype == object:
        raise ValueError(f"{name}: rows of different lengths")
    return array.astype(np.float32) if array.dtype == np.float64 else array


def _has_text(values: Any) -> bool:
    while isinstance(values, Sequence) and not isinstance(values, str) and values:
        values = values[0]
    return isinstance(values, str | dict)


def _decoded(values: Any, name: str) -> Any:
    if isinstance(values, dict):
        return base64.b64decode(values["b64"])
    if isinstance(values, list):
        return [_decoded(value, name) for value in values]
    return values


def _specs(entries: Mapping[str, Any]) -> dict[str, TensorSpec]:
    specs = {}
    for name, entry in sorted(entries.items()):
        shape = entry.get("tensor_shape", {})
        lengths = None if shape.get("unknown_rank") else tuple(int(dim["size"]) for dim in shape.get("dim", []))
        number = DTYPE_NAMES.get(entry.get("dtype", ""), 0)
        specs[name] = TensorSpec(name, DTYPES.get(number, np.dtype(np.void)), lengths)
    return specs
