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
from mlcore.serving.server.grpc_common import answering, deadline_of, metadata_id
from mlcore.serving.server.service import Service
from mlcore.serving.server.signature import Array, TensorSpec
from mlcore.serving.server.states import version_states

PROTOCOL = "tfs-grpc"
_METADATA_FIELD = "signature_def"

# By `dtype.char`, as `str(dtype)` takes longer than all the rest of a small tensor.
_NUMBERS = {
    np.dtype(name).char: number
    for name, number in {
        "float16": types_pb2.DT_HALF, "float32": types_pb2.DT_FLOAT, "float64": types_pb2.DT_DOUBLE,
        "int8": types_pb2.DT_INT8, "int16": types_pb2.DT_INT16, "int32": types_pb2.DT_INT32,
        "int64": types_pb2.DT_INT64, "uint8": types_pb2.DT_UINT8, "uint16": types_pb2.DT_UINT16,
        "uint32": types_pb2.DT_UINT32, "uint64": types_pb2.DT_UINT64, "bool": types_pb2.DT_BOOL,
        "object": types_pb2.DT_STRING,
    }.items()
}  # fmt: skip
# The fields of TensorProto for values; those whose values are stored as in memory, with the field's tag.
_PACKED = {"f": ("float_val", b"\x2a"), "d": ("double_val", b"\x32")}
_FIELDS = {
    np.dtype(name).char: field
    for name, field in {
        "int8": "int_val", "int16": "int_val", "int32": "int_val", "uint8": "int_val", "uint16": "int_val",
        "int64": "int64_val", "uint32": "uint32_val", "uint64": "uint64_val", "bool": "bool_val",
        "object": "string_val",
    }.items()
}  # fmt: skip


def decode(name: str, proto: tensor_pb2.TensorProto, spec: TensorSpec) -> Array:
    """A tensor of a request as an array.

    Raises:
        RequestError: Its type is another, or its content does not fit its shape.
    """
    wanted = spec.dtype
    if proto.dtype != _NUMBERS.get(wanted.char) and _dtype(proto.dtype) != wanted:
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
    elif wanted.char in _PACKED:
        values = np.array(getattr(proto, _PACKED[wanted.char][0]), wanted)
    elif wanted.char in _FIELDS:
        values = np.array(getattr(proto, _FIELDS[wanted.char])).astype(wanted)
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


def encode(value: Array, proto: tensor_pb2.TensorProto) -> None:
    """Put an array into a tensor of a response, with its values in the typed field, as TensorFlow Serving does.

    Clients read `float_val` and its like. Floats lie in the message as they lie in memory, so one copy does.
    """
    kind = value.dtype.char
    packed = _PACKED.get(kind)
    if packed and value.size:
        content = value.tobytes()
        proto.MergeFromString(packed[1] + _varint(len(content)) + content)
    elif kind in _FIELDS:
        getattr(proto, _FIELDS[kind]).extend(value.ravel().tolist())
    elif not packed:
        proto.CopyFrom(tf.make_tensor_proto(value))
        return
    proto.dtype = _NUMBERS[kind]
    dims = proto.tensor_shape.dim
    for size in value.shape:
        dims.add().size = size
    if not value.ndim:
        proto.tensor_shape.SetInParent()


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


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
    """Predict and GetModelMetadata. Classify, Regress and the rest answer UNIMPLEMENTED, as generated."""

    def __init__(self, service: Service) -> None:
        self.service = service

    async def Predict(self, message: Any, context: grpc.aio.ServicerContext) -> Any:
        """Answer a prediction."""
        async with answering(self.service.request(PROTOCOL, metadata_id(context)), context) as request:
            version = request.choose(message.model_spec.name, _wanted_version(message.model_spec))
            signature = request.signature(message.model_spec.signature_name)
            signature.check_names(message.inputs)
            inputs = {name: decode(name, message.inputs[name], spec) for name, spec in signature.inputs.items()}
            wanted = signature.select(list(message.output_filter))
            outputs = await request.run(signature, inputs, deadline_of(context))
            response = predict_pb2.PredictResponse()
            spec = response.model_spec
            spec.name = message.model_spec.name
            spec.signature_name = signature.name
            spec.version.value = version.number
            for name in wanted:
                encode(outputs[name], response.outputs[name])
            return response

    async def GetModelMetadata(self, message: Any, context: grpc.aio.ServicerContext) -> Any:
        """The signatures of a version."""
        async with answering(self.service.request(PROTOCOL, metadata_id(context)), context) as request:
            for field in message.metadata_field:
                if field != _METADATA_FIELD:
                    raise RequestError(f"metadata_field {field!r}: expected {_METADATA_FIELD!r}")
            if not message.metadata_field:
                raise RequestError(f"metadata_field: expected {_METADATA_FIELD!r}")
            version = request.choose(message.model_spec.name, _wanted_version(message.model_spec))
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
        async with answering(self.service.request(PROTOCOL, metadata_id(context)), context):
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
