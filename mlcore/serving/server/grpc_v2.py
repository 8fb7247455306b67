"""The V2 (Open Inference) gRPC interface: kserve's servicer, with versions, signatures, time-outs and request ids."""

from typing import Any

import grpc
from kserve.protocol.grpc import grpc_predict_v2_pb2 as messages
from kserve.protocol.grpc.servicer import InferenceServicer
from kserve.protocol.infer_type import to_http_parameters

from mlcore.serving.server import v2_tensors
from mlcore.serving.server.errors import RequestError
from mlcore.serving.server.grpc_common import answering, deadline_of, metadata_id
from mlcore.serving.server.rest_v2 import SIGNATURE, model_metadata
from mlcore.serving.server.service import Service
from mlcore.serving.server.signature import Array, Signature

PROTOCOL = "v2-grpc"
REPOSITORY = "the directory of the versions says what is loaded; it cannot be asked for"


class Servicer(InferenceServicer):  # type: ignore[misc]
    """The methods that are about a model; those about the server are kserve's."""

    def __init__(self, service: Service, data_plane: Any, repository_extension: Any) -> None:
        super().__init__(data_plane, repository_extension)
        self.service = service

    async def ModelInfer(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        """Answer a prediction."""
        work = self.service.request(PROTOCOL, metadata_id(context) or request.id)
        async with answering(work, context):
            version = work.choose(request.model_name, _version(request.model_version))
            signature = work.signature(to_http_parameters(request.parameters).get(SIGNATURE))
            inputs = _decode(signature, request)
            wanted = signature.select([output.name for output in request.outputs])
            outputs = await work.run(signature, inputs, deadline_of(context))
            response = messages.ModelInferResponse(
                model_name=request.model_name, model_version=str(version.number), id=request.id or work.id
            )
            raw = bool(request.raw_input_contents) or any(outputs[name].dtype == "float16" for name in wanted)
            for name in wanted:
                _encode(name, outputs[name], response, raw)
            return response

    async def ModelReady(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        """Whether the model, or a version of it, answers."""
        repository = self.service.repository
        try:
            repository.release(repository.acquire(request.name, _version(request.version), ""))
        except RequestError as error:
            if request.name != repository.name:
                await context.abort(grpc.StatusCode.NOT_FOUND, str(error))
            return messages.ModelReadyResponse(ready=False)
        return messages.ModelReadyResponse(ready=not self.service.stopping)

    async def ModelMetadata(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        """Inputs and outputs of the default signature."""
        try:
            return messages.ModelMetadataResponse(
                **model_metadata(self.service, request.name, _version(request.version))
            )
        except RequestError as error:
            await context.abort(getattr(grpc.StatusCode, error.code.grpc), str(error))

    async def RepositoryModelLoad(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        """Refused: the directory of the versions says what is loaded."""
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, REPOSITORY)

    async def RepositoryModelUnload(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        """Refused, too."""
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, REPOSITORY)


def _version(text: str) -> int | None:
    """The version that a request asks for.

    Raises:
        RequestError: It is no number.
    """
    if not text:
        return None
    if not (text.isascii() and text.isdecimal()):
        raise RequestError(f"model_version {text!r}: expected a number")
    return int(text)


def _decode(signature: Signature, request: Any) -> dict[str, Array]:
    """The inputs of a request."""
    signature.check_names({tensor.name: None for tensor in request.inputs})
    if len(request.inputs) != len(signature.inputs):
        raise RequestError("inputs: an input is given twice")
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise RequestError(f"raw_input_contents: {len(raw)} for {len(request.inputs)} inputs")
    values = {}
    for index, tensor in enumerate(request.inputs):
        spec = signature.inputs[tensor.name]
        v2_tensors.check_datatype(spec, tensor.datatype)
        shape = v2_tensors.shape_of(spec, list(tensor.shape))
        if raw:
            values[spec.name] = v2_tensors.from_raw(spec, shape, raw[index])
        else:
            values[spec.name] = v2_tensors.from_contents(spec, shape, tensor.contents)
    return values


def _encode(name: str, value: Array, response: Any, raw: bool) -> None:
    """Add an output to a response, in the form in which the inputs came."""
    datatype = v2_tensors.datatype_of(value.dtype)
    tensor = response.outputs.add(name=name, datatype=datatype, shape=value.shape)
    if raw:
        response.raw_output_contents.append(v2_tensors.to_raw(value))
    else:
        getattr(tensor.contents, v2_tensors.CONTENTS[datatype]).extend(value.ravel().tolist())
