"""TensorFlow's and TensorFlow Serving's messages without TensorFlow, and arrays in and out of a TensorProto.

Numbers of the fields are those of tensorflow/core/framework/{tensor,tensor_shape,types}.proto,
tensorflow/core/protobuf/meta_graph.proto and tensorflow_serving/apis/*.proto.
"""

from functools import cache
from typing import Any

import numpy as np

from mlcore.serving.clients.client import Array, Signature, TensorSpec, as_bytes, is_texts
from mlcore.serving.clients.wire import build

_TABLE = """
TensorShapeProto.Dim
  1 int64 size
  2 string name
TensorShapeProto
  2 repeated TensorShapeProto.Dim dim
  3 bool unknown_rank
TensorProto
  1 int32 dtype
  2 TensorShapeProto tensor_shape
  3 int32 version_number
  4 bytes tensor_content
  5 repeated float float_val
  6 repeated double double_val
  7 repeated int32 int_val
  8 repeated bytes string_val
  9 repeated float scomplex_val
  10 repeated int64 int64_val
  11 repeated bool bool_val
  12 repeated double dcomplex_val
  13 repeated int32 half_val
  16 repeated uint32 uint32_val
  17 repeated uint64 uint64_val
TensorInfo
  1 string name
  2 int32 dtype
  3 TensorShapeProto tensor_shape
SignatureDef
  1 map<string, TensorInfo> inputs
  2 map<string, TensorInfo> outputs
  3 string method_name
SignatureDefMap
  1 map<string, SignatureDef> signature_def
Int64Value
  1 int64 value
Any
  1 string type_url
  2 bytes value
ModelSpec
  1 string name
  2 oneof Int64Value version
  3 string signature_name
  4 oneof string version_label
PredictRequest
  1 ModelSpec model_spec
  2 map<string, TensorProto> inputs
  3 repeated string output_filter
PredictResponse
  1 map<string, TensorProto> outputs
  2 ModelSpec model_spec
GetModelMetadataRequest
  1 ModelSpec model_spec
  2 repeated string metadata_field
GetModelMetadataResponse
  1 ModelSpec model_spec
  2 map<string, Any> metadata
StatusProto
  1 int32 error_code
  2 string error_message
ModelVersionStatus
  1 int64 version
  2 int32 state
  3 StatusProto status
GetModelStatusRequest
  1 ModelSpec model_spec
GetModelStatusResponse
  1 repeated ModelVersionStatus model_version_status
"""

# DataType of types.proto; a tensor of the type bfloat16 has no dtype of numpy.
DTYPES: dict[int, np.dtype[Any]] = {
    1: np.dtype(np.float32), 2: np.dtype(np.float64), 3: np.dtype(np.int32), 4: np.dtype(np.uint8),
    5: np.dtype(np.int16), 6: np.dtype(np.int8), 7: np.dtype(object), 8: np.dtype(np.complex64),
    9: np.dtype(np.int64), 10: np.dtype(np.bool_), 17: np.dtype(np.uint16), 18: np.dtype(np.complex128),
    19: np.dtype(np.float16), 22: np.dtype(np.uint32), 23: np.dtype(np.uint64),
}  # fmt: skip
# The names of the types in JSON, such as DT_FLOAT.
DTYPE_NAMES = {
    "DT_FLOAT": 1, "DT_DOUBLE": 2, "DT_INT32": 3, "DT_UINT8": 4, "DT_INT16": 5, "DT_INT8": 6, "DT_STRING": 7,
    "DT_COMPLEX64": 8, "DT_INT64": 9, "DT_BOOL": 10, "DT_UINT16": 17, "DT_COMPLEX128": 18, "DT_HALF": 19,
    "DT_UINT32": 22, "DT_UINT64": 23,
}  # fmt: skip
STATES = {0: "UNKNOWN", 10: "START", 20: "LOADING", 30: "AVAILABLE", 40: "UNLOADING", 50: "END"}
_STRING = 7
_NUMBERS = {dtype: number for number, dtype in DTYPES.items()}
_LISTS = {
    1: "float_val", 2: "double_val", 3: "int_val", 4: "int_val", 5: "int_val", 6: "int_val", 7: "string_val",
    8: "scomplex_val", 9: "int64_val", 10: "bool_val", 17: "int_val", 18: "dcomplex_val", 19: "half_val",
    22: "uint32_val", 23: "uint64_val",
}  # fmt: skip


@cache
def messages() -> dict[str, Any]:
    """Name -> class of each message."""
    return build("tensorflow", _TABLE)


def fill_tensor(proto: Any, array: Array) -> None:
    """Write an array into a TensorProto."""
    for length in array.shape:
        proto.tensor_shape.dim.add().size = length
    if not array.shape:
        proto.tensor_shape.SetInParent()
    if is_texts(array):
        proto.dtype = _STRING
        proto.string_val.extend(as_bytes(array).ravel())
        return
    if array.dtype not in _NUMBERS:
        raise ValueError(f"an array of {array.dtype} cannot be sent to TensorFlow Serving")
    proto.dtype = _NUMBERS[array.dtype]
    proto.tensor_content = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()


def read_tensor(proto: Any) -> Array:
    """The array in a TensorProto.

    Raises:
        ValueError: Its type has no dtype of numpy, or its values do not fill its shape.
    """
    if proto.dtype not in DTYPES:
        raise ValueError(f"the type {proto.dtype} of TensorFlow is not known here")
    dtype = DTYPES[proto.dtype]
    shape = tuple(dim.size for dim in proto.tensor_shape.dim)
    count = int(np.prod(shape, dtype=np.int64))
    if proto.tensor_content and proto.dtype != _STRING:
        return np.frombuffer(proto.tensor_content, dtype.newbyteorder("<")).astype(dtype).reshape(shape)
    given = getattr(proto, _LISTS[proto.dtype])
    if proto.dtype == _STRING:
        values = np.empty(len(given), dtype=object)
        values[:] = list(given)
    elif dtype.kind == "c":
        values = np.asarray(given, np.float64).reshape(-1, 2).view(np.complex128)[:, 0].astype(dtype)
    elif dtype == np.float16:  # the bits, as integers
        values = np.asarray(given, np.uint16).view(np.float16)
    else:
        values = np.asarray(given, dtype)
    if len(values) > count or (count and not len(values) and proto.dtype == _STRING):
        raise ValueError(f"{len(values)} values for the shape {list(shape)}")
    if len(values) < count:  # the last value stands for all that follow, as zero for none
        last = values[-1:] if len(values) else np.zeros(1, dtype)
        values = np.concatenate([values, np.repeat(last, count - len(values))])
    return values.reshape(shape)


def read_shape(proto: Any) -> tuple[int, ...] | None:
    """The lengths in a TensorShapeProto."""
    return None if proto.unknown_rank else tuple(dim.size for dim in proto.dim)


def read_signatures(content: bytes) -> dict[str, Signature]:
    """Name -> signature in a serialised SignatureDefMap, without those of training."""
    found = messages()["SignatureDefMap"].FromString(content).signature_def

    def specs(infos: Any) -> dict[str, TensorSpec]:
        return {
            name: TensorSpec(name, DTYPES.get(info.dtype, np.dtype(np.void)), read_shape(info.tensor_shape))
            for name, info in sorted(infos.items())
        }

    return {
        name: Signature(specs(signature.inputs), specs(signature.outputs))
        for name, signature in sorted(found.items())
        if not name.startswith("__saved_model")
    }
