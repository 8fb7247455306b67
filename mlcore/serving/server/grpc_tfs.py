"""TensorFlow Serving's gRPC interface: Predict, GetModelMetadata and GetModelStatus, from its own stubs."""

from collections.abc import Mapping
from typing import Any

import grpc
import numpy as np
from google.protobuf import json_format
from tensorflow.core.framework import tensor_pb2, types_pb2
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from mlcore.mnist.tensorflow import tf
from mlcore.serving.server.errors import RequestError
from mlcore.serving.server.grpc_common import answering, deadline_of, metadata_id, telling
from mlcore.serving.server.predict_response import FIELDS, NUMBERS, PACKED, predict_response
from mlcore.serving.server.service import Service
from mlcore.serving.server.signature import Array, TensorSpec
from mlcore.serving.server.states import version_states

PROTOCOL = "tfs-grpc"
SERVICE = "tensorflow.serving.PredictionService"
_METADATA_FIELD = "signature_def"
_ONLY_PREDICT = "is not served: call Predict, which takes serialised tf.Examples where a signature does (tf_example)"


def decode(name: str, proto: tensor_pb2.TensorProto, spec: TensorSpec) -> Array:
    """A tensor of a request as an array.

    Raises:
        RequestError: Its type is another, or its content does not fit its shape.
    """
    wanted = spec.dtype
    if proto.dtype != NUMBERS.get(wanted.char) and _dtype(proto.dtype) != wanted:
        text = types_pb2.DataType.Name(proto.dtype) if proto.dtype in types_pb2.DataType.values() else proto.dtype
        raise RequestError(f"input {name!r}: expected {spec.dtype_text}, not {text}")
    shape = [dim.size for dim in proto.tensor_shape.dim]
    if wanted.kind != "O" and proto.tensor_content:
        try:
            return np.frombuffer(proto.tensor_content, wanted).reshape(shape)
        except ValueError as error:
            size = len(proto.tensor_content)
            raise RequestError(f"input {name!r}: {size} bytes do not make shape {shape}") from error
    if any(size < 0 for size in shape) or proto.tensor_shape.unknown_rank:
        raise RequestError(f"input {name!r}: its shape is not given")
    if wanted.kind == "O":
        values = np.empty(len(proto.string_val), object)
        values[:] = list(proto.string_val)
    elif wanted.char in PACKED:
        values = np.array(getattr(proto, PACKED[wanted.char][0]), wanted)
    elif wanted.char in FIELDS:
        values = np.array(getattr(proto, FIELDS[wanted.char][0])).astype(wanted)
    else:
        try:
            return tf.make_ndarray(proto)
        except (ValueError, TypeError) as error:
            raise RequestError(f"input {name!r}: {error}") from error
    count = int(np.prod(shape, dtype=np.int64)) if len(shape) < 255 else -1
    if len(values) == count:
        return values.reshape(shape)
    if len(values) == 1 and wanted.kind != "O" and 0 < count * wanted.itemsize <= 2**20:
        return np.full(shape, values[0])  # TensorProto's short form for a tensor of one value
    raise RequestError(f"input {name!r}: {len(values)} values do not make shape {shape}")


def _dtype(number: int) -> Any:
    try:
        return np.dtype(tf.dtypes.as_dtype(number).as_numpy_dtype)
    except TypeError:
        return None


def signatures_as_json(definitions: Mapping[str, Any]) -> Any:
    """Signatures as TensorFlow Serving's REST interface writes them."""
    return json_format.MessageToDict(
        _signature_map(definitions), preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


def _signature_map(definitions: Mapping[str, Any]) -> get_model_metadata_pb2.SignatureDefMap:
    found = get_model_metadata_pb2.SignatureDefMap()
    for name, definition in definitions.items():
        found.signature_def[name].CopyFrom(definition)
    return found


def _wanted_version(spec: Any) -> int | None:
    """The version that a ModelSpec asks for.

    Raises:
        RequestError: It asks by a label.
    """
    if spec.HasField("version"):
        return int(spec.version.value)
    if spec.version_label:
        raise RequestError(f"version_label {spec.version_label!r}: labels are not served; give a version")
    return None


class PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):  # type: ignore[misc]
    """Predict and GetModelMetadata.

    Classify, Regress and MultiInference are for signatures of methods of their own, which `tf.saved_model.save` does
    not write; TensorFlow Serving refuses them for the others, too.
    """

    def __init__(self, service: Service) -> None:
        self.service = service

    def add_to(self, server: grpc.aio.Server) -> None:
        """Let a server answer with it."""
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(self, server)
        # Over the generated one, whose answers are messages: ours is their bytes.
        predict = grpc.unary_unary_rpc_method_handler(self.Predict, predict_pb2.PredictRequest.FromString)
        server.add_registered_method_handlers(SERVICE, {"Predict": predict})

    async def Predict(self, message: Any, context: grpc.aio.ServicerContext) -> bytes:
        """Answer a prediction."""
        async with answering(self.service.request(PROTOCOL, metadata_id(context)), context) as request:
            version = request.choose(message.model_spec.name, _wanted_version(message.model_spec))
            signature = request.signature(message.model_spec.signature_name)
            given = dict(message.inputs)
            signature.check_names(given)
            inputs = {name: decode(name, given[name], spec) for name, spec in signature.inputs.items()}
            wanted = signature.select(list(message.output_filter))
            outputs = await request.run(signature, inputs, deadline_of(context))
            return predict_response(
                message.model_spec.name, signature.name, version.number, {name: outputs[name] for name in wanted}
            )

    async def Classify(self, _message: Any, context: grpc.aio.ServicerContext) -> None:
        """Refused."""
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, f"Classify {_ONLY_PREDICT}")

    async def Regress(self, _message: Any, context: grpc.aio.ServicerContext) -> None:
        """Refused."""
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, f"Regress {_ONLY_PREDICT}")

    async def MultiInference(self, _message: Any, context: grpc.aio.ServicerContext) -> None:
        """Refused."""
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, f"MultiInference {_ONLY_PREDICT}")

    async def GetModelMetadata(self, message: Any, context: grpc.aio.ServicerContext) -> Any:
        """The signatures of a version."""
        async with telling(context):
            for field in message.metadata_field:
                if field != _METADATA_FIELD:
                    raise RequestError(f"metadata_field {field!r}: expected {_METADATA_FIELD!r}")
            if not message.metadata_field:
                raise RequestError(f"metadata_field: expected {_METADATA_FIELD!r}")
            repository = self.service.repository
            version = repository.acquire(message.model_spec.name, _wanted_version(message.model_spec), "")
            repository.release(version)
            response = get_model_metadata_pb2.GetModelMetadataResponse()
            response.model_spec.name = message.model_spec.name
            response.model_spec.version.value = version.number
            response.metadata[_METADATA_FIELD].Pack(_signature_map(version.model.signature_defs))
            return response


class ModelService(model_service_pb2_grpc.ModelServiceServicer):  # type: ignore[misc]
    """GetModelStatus. HandleReloadConfigRequest answers UNIMPLEMENTED: the directory is the configuration."""

    def __init__(self, service: Service) -> None:
        self.service = service

    async def GetModelStatus(self, message: Any, context: grpc.aio.ServicerContext) -> Any:
        """The states of the versions."""
        async with telling(context):
            spec = message.model_spec
            response = get_model_status_pb2.GetModelStatusResponse()
            for state in version_states(self.service.repository, spec.name, _wanted_version(spec)):
                entry = response.model_version_status.add(version=state.number)
                entry.state = get_model_status_pb2.ModelVersionStatus.State.Value(state.state)
                entry.status.error_code = _error_code(state.code)
                entry.status.error_message = state.message
            return response


def _error_code(name: str) -> int:
    from tensorflow.core.protobuf import error_codes_pb2

    return error_codes_pb2.Code.Value(name)
