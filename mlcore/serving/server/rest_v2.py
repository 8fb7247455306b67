"""The V2 (Open Inference) REST interface of a model, with versions, before kserve's own, which has none.

GET  /v2/models/<name>[/versions/<n>][/ready]
POST /v2/models/<name>[/versions/<n>]/infer       JSON, with binary tensors behind it if the header says so

The request's parameter `signature_name` chooses a signature.
"""

import functools
from collections.abc import Iterable
from typing import Any

import numpy as np
import orjson
from kserve.constants.constants import INFERENCE_CONTENT_LENGTH_HEADER
from starlette.responses import Response
from starlette.routing import Route

from mlcore.serving.server import json_tensors, v2_tensors
from mlcore.serving.server.errors import Code, RequestError
from mlcore.serving.server.http import (
    JSON,
    LARGE,
    Answer,
    HttpRequest,
    Post,
    Predict,
    error_response,
    in_thread,
    request_id,
    version_number,
)
from mlcore.serving.server.service import Service
from mlcore.serving.server.signature import Arrays
from mlcore.serving.server.v2_head import Head

PROTOCOL = "v2"
_JSON, _BINARY = JSON.encode(), b"application/octet-stream"
_JSON_LENGTH = INFERENCE_CONTENT_LENGTH_HEADER.lower()  # how long the JSON before the binary tensors is
_LENGTH_LINE = _JSON_LENGTH.encode() + b": %d\r\n"
PLATFORM = "tensorflow_savedmodel"
SIGNATURE = "signature_name"
_SHORT, _KEPT = 2048, 64  # bytes of a head, and heads, that are kept


class V2:
    """The routes of V2 that are about a model."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self._heads: dict[bytes, Head] = {}

    def predictions(self) -> dict[str, Predict]:
        """Pattern of the path of predictions -> what answers them."""
        return {r"/v2/models/(?P<name>[^/]+)(?:/versions/(?P<version>[^/]+))?/infer": self.infer}

    def routes(self) -> list[Route]:
        """The routes of the rest, for the application."""
        found = []
        for path in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
            found += [
                Route(path + "/ready", self.ready, methods=["GET"]),
                Route(path, self.metadata, methods=["GET"]),
            ]
        return found

    async def infer(self, http: Post) -> Answer | Response:
        """Answer a prediction."""
        given = with_id = request_id(http)
        try:
            with self.service.request(PROTOCOL, given) as request:
                with_id = request.id
                body = http.body
                end = _end_of_json(body, http.headers.get(_JSON_LENGTH))
                text = body if end == len(body) else body[:end]
                head = self._heads.get(text) or await self._read(text)
                if head.id and not given:
                    with_id = request.rename(head.id)
                version = request.choose(http.path_params["name"], version_number(http))
                plan = head.plan(request.signature(head.parameters.get(SIGNATURE)))
                small = len(body) < LARGE  # without `in_thread`, whose call takes as long as the decoding
                inputs, examples = (
                    plan.decode(body, end) if small else await in_thread(len(body), plan.decode, body, end)
                )
                outputs = await request.run(plan.signature, inputs, examples=examples)
                size = sum([value.nbytes for value in outputs.values()])
                answer = {
                    "model_name": self.service.repository.name,
                    "model_version": str(version.number),
                    "id": head.id or request.id,
                }
                encode = _encode_binary if plan.all_binary else _encode
                answered, json_length = (
                    encode(answer, outputs, plan.wanted)
                    if size < LARGE
                    else await in_thread(size, encode, answer, outputs, plan.wanted)
                )
                if json_length is None:
                    return Answer(answered, _JSON, request.id, version.number)
                return Answer(answered, _BINARY, request.id, version.number, _LENGTH_LINE % json_length)
        except Exception as error:
            return error_response(error, with_id)

    async def _read(self, text: bytes) -> Head:
        """The head of a request. Short ones without an id come again and again, so they are kept."""
        head = await in_thread(len(text), Head, text)
        if not head.id and len(text) <= _SHORT:
            if len(self._heads) >= _KEPT:
                self._heads.clear()
            self._heads[text] = head
        return head

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


def _end_of_json(body: bytes, length: str | None) -> int:
    """Where the JSON of a body ends and its binary part begins."""
    if length is None:
        return len(body)
    if not (length.isascii() and length.isdecimal()) or int(length) > len(body):
        raise RequestError(f"header {INFERENCE_CONTENT_LENGTH_HEADER}: {length!r} is no length of the JSON part")
    return int(length)


Encoded = tuple[bytes, int | None]  # the body of an answer, and the length of its JSON part if there is another


def _encode_binary(answer: dict[str, Any], outputs: Arrays, wanted: Iterable[str]) -> Encoded:
    """An answer with all outputs in binary form."""
    tensors = []
    raw = [b""]
    for name in wanted:
        value = outputs[name]
        content = v2_tensors.to_raw(value)
        raw.append(content)
        tensors.append(_text(name, value.dtype, value.shape, len(content)))
    raw[0] = text = json_tensors.dumps({**answer, "outputs": tensors})
    return b"".join(raw), len(text)


def _encode(answer: dict[str, Any], outputs: Arrays, wanted: dict[str, bool]) -> Encoded:
    """An answer with outputs in JSON, or in both forms."""
    tensors: list[Any] = []
    raw = []
    finite = True
    for name, binary in wanted.items():
        value = outputs[name]
        if binary:
            raw.append(v2_tensors.to_raw(value))
            tensors.append(_binary(name, value.dtype, value.shape, len(raw[-1])))
        else:
            finite = finite and (value.dtype.kind != "f" or bool(np.isfinite(value).all()))
            tensors.append(_tensor(name, value.dtype, value.shape) | {"data": v2_tensors.to_list(value)})
    text = json_tensors.dumps({**answer, "outputs": tensors}, finite)
    return (b"".join([text, *raw]), len(text)) if raw else (text, None)


def _tensor(name: str, dtype: "np.dtype[Any]", shape: tuple[int, ...]) -> dict[str, Any]:
    return {"name": name, "datatype": v2_tensors.datatype_of(dtype), "shape": shape}


def _binary(name: str, dtype: "np.dtype[Any]", shape: tuple[int, ...], size: int) -> dict[str, Any]:
    return _tensor(name, dtype, shape) | {"parameters": {"binary_data_size": size}}


@functools.lru_cache(256)
def _text(name: str, dtype: "np.dtype[Any]", shape: tuple[int, ...], size: int) -> orjson.Fragment:
    """The JSON of a tensor whose values come behind it, which is the same for the same shape."""
    return orjson.Fragment(orjson.dumps(_binary(name, dtype, shape, size)))
