"""The Open Inference Protocol (V2) over REST: `/v2/models/<name>[/versions/<n>]/infer`.

Inputs go as raw data behind the JSON head (the extension for binary data, which KServe and Triton have) where JSON
cannot hold them, as bytes that are no UTF-8 such as pictures, or where they are large; small ones go as JSON, which
every server reads. (kserve 0.21's own Python server takes raw numbers, but answers 500 to raw bytes that are no UTF-8;
its gRPC takes them.)
"""

import json
import struct
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import numpy as np

from mlcore.serving.clients.client import (
    SERVING_DEFAULT,
    Array,
    Metadata,
    ModelClient,
    NotServedError,
    Server,
    ServerFailedError,
    Signature,
    TensorSpec,
    as_bytes,
    is_texts,
)
from mlcore.serving.clients.http_channel import HttpChannel
from mlcore.serving.clients.open_inference import DATATYPES, datatype_of, from_raw, to_raw

HEAD_LENGTH = "Inference-Header-Content-Length"
_LARGE = 16 * 1024  # elements of an input that are too many for JSON


class V2Client(ModelClient):
    """A client of a KServe, Triton or other server that speaks Open Inference's REST."""

    protocol = "v2"

    def __init__(self, server: Server, model_name: str, deadline_s: float = 60.0) -> None:
        super().__init__(server, model_name, deadline_s)
        self._http = HttpChannel(server, str(self))

    def close(self) -> None:
        self._http.close()

    def _path(self, version: int | None, suffix: str = "") -> str:
        of_version = f"/versions/{version}" if version is not None else ""
        return f"/v2/models/{quote(self.model_name, safe='')}{of_version}{suffix}"

    def _predict(
        self, inputs: Mapping[str, Array], signature: str | None, version: int | None, timeout_s: float
    ) -> dict[str, Array]:
        entries: list[dict[str, Any]] = []
        buffers: list[bytes] = []
        binary = any(_needs_raw(array) for array in inputs.values())
        for name, array in inputs.items():
            entry: dict[str, Any] = {"name": name, "shape": list(array.shape), "datatype": datatype_of(array)}
            if binary:
                buffers.append(to_raw(array))
                entry["parameters"] = {"binary_data_size": len(buffers[-1])}
            else:
                entry["data"] = _plain(array)
            entries.append(entry)
        head: dict[str, Any] = {"inputs": entries}
        parameters: dict[str, Any] = {"binary_data_output": True} if binary else {}
        if signature is not None:
            parameters["signature_name"] = signature
        if parameters:
            head["parameters"] = parameters
        content = json.dumps(head, separators=(",", ":")).encode()
        headers = {"Content-Type": "application/json"}
        if binary:
            headers = {"Content-Type": "application/octet-stream", HEAD_LENGTH: str(len(content))}
        body = b"".join((content, *buffers))
        answer = self._http.send("POST", self._path(version, "/infer"), timeout_s, body, headers)
        length = int(answer.headers.get(HEAD_LENGTH) or len(answer.content))
        found = self._http.read_json(answer.content[:length])
        return self._outputs(found, answer.content[length:])

    def _outputs(self, found: Mapping[str, Any], raw: bytes) -> dict[str, Array]:
        outputs: dict[str, Array] = {}
        position = 0
        try:
            for entry in found["outputs"]:
                name, shape, datatype = entry["name"], tuple(entry["shape"]), entry["datatype"]
                size = (entry.get("parameters") or {}).get("binary_data_size")
                if size is not None and "data" not in entry:
                    outputs[name] = from_raw(raw[position : position + size], datatype, shape)
                    position += size
                elif datatype == "BYTES":
                    outputs[name] = as_bytes(_flat(entry["data"])).reshape(shape)
                else:
                    outputs[name] = np.asarray(_flat(entry["data"]), DATATYPES[datatype]).reshape(shape)
        except (KeyError, TypeError, ValueError, struct.error) as error:
            raise ServerFailedError(f"{self}: the answer is not Open Inference's: {error!r}") from error
        return outputs

    def _metadata(self, version: int | None, timeout_s: float) -> Metadata:
        found = self._http.read_json(self._http.send("GET", self._path(version), timeout_s).content)
        return metadata_of(found)

    def _versions(self, timeout_s: float) -> dict[int, str]:
        found = self._http.read_json(self._http.send("GET", self._path(None), timeout_s).content)
        numbers = [int(text) for text in found.get("versions") or () if str(text).isdecimal()]
        return dict.fromkeys(sorted(numbers), "AVAILABLE")

    def _why_not_ready(self, timeout_s: float) -> str:
        try:
            answer = self._http.send("GET", self._path(None, "/ready"), timeout_s)
        except NotServedError as error:
            return str(error)
        try:
            found = json.loads(answer.content or b"{}")
        except ValueError:
            found = {}
        if isinstance(found, dict) and found.get("ready") is False:
            return f"{self}: ready is false"
        return ""


def metadata_of(found: Mapping[str, Any]) -> Metadata:
    """The metadata that `/v2/models/<name>` gives."""

    def specs(entries: Any) -> dict[str, TensorSpec]:
        return {
            entry["name"]: TensorSpec(
                entry["name"],
                DATATYPES.get(entry.get("datatype", ""), np.dtype(np.void)),
                tuple(int(length) for length in entry["shape"]) if entry.get("shape") is not None else None,
            )
            for entry in entries or ()
        }

    versions = [int(text) for text in found.get("versions") or () if str(text).isdecimal()]
    signature = Signature(specs(found.get("inputs")), specs(found.get("outputs")))
    return Metadata({SERVING_DEFAULT: signature}, False, max(versions, default=None))


def _needs_raw(array: Array) -> bool:
    if not is_texts(array):
        return array.size > _LARGE or array.dtype == np.float16
    try:
        for value in as_bytes(array).ravel():
            value.decode()
    except UnicodeDecodeError:
        return True
    return False


def _plain(array: Array) -> Any:
    if is_texts(array):
        return [value.decode() for value in as_bytes(array).ravel()]
    return array.ravel().tolist()


def _flat(values: Any) -> list[Any]:
    """The values of nested lists in one; the protocol allows both."""
    if isinstance(values, list) and any(isinstance(value, list) for value in values):
        return [inner for value in values for inner in _flat(value)]
    return list(values)
