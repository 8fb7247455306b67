"""The V2 (Open Inference) REST interface of a model, with versions, before kserve's own, which has none.

GET  /v2/models/<name>[/versions/<n>][/ready]
POST /v2/models/<name>[/versions/<n>]/infer       JSON, with binary tensors behind it if the header says so

The request's parameter `signature_name` chooses a signature.
"""

from typing import Any

import numpy as np
from kserve.constants.constants import INFERENCE_CONTENT_LENGTH_HEADER
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from mlcore.serving.server import json_tensors, v2_tensors
from mlcore.serving.server.errors import Code, RequestError
from mlcore.serving.server.http import JSON, answer_headers, error_response, in_thread, request_id, version_number
from mlcore.serving.server.service import Service
from mlcore.serving.server.signature import Array, Arrays, Signature

PROTOCOL = "v2"
PLATFORM = "tensorflow_savedmodel"
SIGNATURE = "signature_name"


class V2:
    """The routes of V2 that are about a model."""

    def __init__(self, service: Service) -> None:
        self.service = service

    def routes(self) -> list[Route]:
        """The routes, for the application."""
        found = []
        for path in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
            found += [
                Route(path + "/infer", self.infer, methods=["POST"]),
                Route(path + "/ready", self.ready, methods=["GET"]),
                Route(path, self.metadata, methods=["GET"]),
            ]
        return found

    async def infer(self, http: HttpRequest) -> Response:
        """Answer a prediction."""
        with_id = request_id(http)
        try:
            with self.service.request(PROTOCOL, with_id) as request:
                with_id = request.id
                body = await http.body()
                length = http.headers.get(INFERENCE_CONTENT_LENGTH_HEADER)
                content, binary = await in_thread(len(body), _split, body, length)
                given = content.get("id")
                if given and not request_id(http):
                    with_id = request.rename(str(given))
                version = request.choose(http.path_params["name"], version_number(http))
                parameters = _parameters(content, "the request")
                signature = request.signature(parameters.get(SIGNATURE))
                inputs = await in_thread(len(body), _decode, signature, content, binary)
                wanted = _wanted(signature, content, parameters)
                outputs = await request.run(signature, inputs)
                size = sum(value.nbytes for value in outputs.values())
                answer = {
                    "model_name": self.service.repository.name,
                    "model_version": str(version.number),
                    "id": str(given or request.id),
                }
                answered, json_length = await in_thread(size, _encode, answer, outputs, wanted)
                headers = answer_headers(request.id, version.number)
                if json_length is None:
                    return Response(answered, headers=headers, media_type=JSON)
                headers[INFERENCE_CONTENT_LENGTH_HEADER] = str(json_length)
                return Response(answered, headers=headers, media_type="application/octet-stream")
        except Exception as error:
            return error_response(error, with_id)

    async def ready(self, http: HttpRequest) -> Response:
        """Whether the model, or a version of it, answers."""
        repository = self.service.repository
        try:
            repository.release(repository.acquire(http.path_params["name"], version_number(http), ""))
        except RequestError as error:
            return error_response(error)
        if self.service.stopping:
            return error_response(RequestError("the server is stopping", Code.UNAVAILABLE))
        return Response(json_tensors.dumps({"name": repository.name, "ready": True}), media_type=JSON)

    async def metadata(self, http: HttpRequest) -> Response:
        """Inputs and outputs of the default signature."""
        try:
            body = model_metadata(self.service, http.path_params["name"], version_number(http))
        except RequestError as error:
            return error_response(error)
        return Response(json_tensors.dumps(body), media_type=JSON)


def model_metadata(service: Service, model: str, number: int | None) -> dict[str, Any]:
    """A model's metadata, as REST and gRPC have it.

    Raises:
        RequestError: The model or the version is not served.
    """
    repository = service.repository
    version = repository.acquire(model, number, "")
    try:
        signature = version.model.signatures[version.model.default_signature]
        return {
            "name": repository.name,
            "versions": [str(served) for served in repository.versions],
            "platform": PLATFORM,
            "inputs": v2_tensors.metadata_tensors(signature.inputs),
            "outputs": v2_tensors.metadata_tensors(signature.outputs),
        }
    finally:
        repository.release(version)


def _split(body: bytes, length: str | None) -> tuple[dict[str, Any], memoryview]:
    """The JSON and the binary part of a body."""
    end = len(body)
    if length is not None:
        if not (length.isascii() and length.isdecimal()) or int(length) > len(body):
            raise RequestError(f"header {INFERENCE_CONTENT_LENGTH_HEADER}: {length!r} is no length of the JSON part")
        end = int(length)
    content = json_tensors.loads(body[:end])
    if not isinstance(content, dict):
        raise RequestError("the request must be a JSON object with 'inputs'")
    return content, memoryview(body)[end:]


def _parameters(content: dict[str, Any], where: str) -> dict[str, Any]:
    parameters = content.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise RequestError(f"'parameters' of {where}: expected an object")
    return parameters


def _decode(signature: Signature, content: dict[str, Any], binary: memoryview) -> dict[str, Array]:
    """The inputs of a request."""
    tensors = content.get("inputs")
    if not isinstance(tensors, list) or not all(isinstance(tensor, dict) for tensor in tensors):
        raise RequestError("'inputs': expected a list of tensors")
    signature.check_names({str(tensor.get("name")): None for tensor in tensors})
    if len(tensors) != len(signature.inputs):
        raise RequestError("'inputs': an input is given twice")
    values = {}
    for tensor in tensors:
        spec = signature.inputs[str(tensor["name"])]
        v2_tensors.check_datatype(spec, tensor.get("datatype"))
        shape = v2_tensors.shape_of(spec, tensor.get("shape"))
        parameters = _parameters(tensor, f"input {spec.name!r}")
        size = parameters.get("binary_data_size")
        if size is None:
            values[spec.name] = v2_tensors.from_list(spec, shape, tensor.get("data"), parameters)
            continue
        if type(size) is not int or not 0 <= size <= len(binary):
            raise RequestError(f"input {spec.name!r}: binary_data_size is {size}, {len(binary)} bytes are left")
        values[spec.name] = v2_tensors.from_raw(spec, shape, bytes(binary[:size]))
        binary = binary[size:]
    if len(binary):
        raise RequestError(f"{len(binary)} bytes more than the inputs' binary_data_size say")
    return values


def _wanted(signature: Signature, content: dict[str, Any], parameters: dict[str, Any]) -> dict[str, bool]:
    """Name of each output to give -> whether in binary form."""
    asked = content.get("outputs") or []
    if not isinstance(asked, list) or not all(isinstance(output, dict) for output in asked):
        raise RequestError("'outputs': expected a list of objects with a name")
    binary = {
        str(output.get("name")): _parameters(output, f"output {output.get('name')!r}").get("binary_data")
        for output in asked
    }
    by_default = parameters.get("binary_data_output") is True
    return {
        name: by_default if binary.get(name) is None else binary[name] is True
        for name in signature.select(list(binary))
    }


def _encode(answer: dict[str, Any], outputs: Arrays, wanted: dict[str, bool]) -> tuple[bytes, int | None]:
    """The body of an answer, and the length of its JSON part if there is another."""
    tensors = []
    raw = []
    finite = True
    for name, binary in wanted.items():
        value = outputs[name]
        tensor: dict[str, Any] = {
            "name": name, "datatype": v2_tensors.datatype_of(value.dtype), "shape": list(value.shape),
        }  # fmt: skip
        if binary:
            raw.append(v2_tensors.to_raw(value))
            tensor["parameters"] = {"binary_data_size": len(raw[-1])}
        else:
            finite = finite and (value.dtype.kind != "f" or bool(np.isfinite(value).all()))
            tensor["data"] = v2_tensors.to_list(value)
        tensors.append(tensor)
    text = json_tensors.dumps({**answer, "outputs": tensors}, finite)
    return (b"".join([text, *raw]), len(text)) if any(wanted.values()) else (text, None)
