"""TensorFlow Serving's PredictResponse as bytes, with values in the typed fields, as TensorFlow Serving has them.

Clients read `float_val` and its like. Numbers with a fraction lie in the message as they lie in memory, and all before
them is the same for the same shape, so it is made once: filling a message took as long as all else in a small request.
"""

import functools
from collections.abc import Mapping

import numpy as np
from tensorflow.core.framework import tensor_pb2, types_pb2
from tensorflow_serving.apis import model_pb2

from mlcore.mnist.tensorflow import tf
from mlcore.runtime.wire import varint
from mlcore.serving.server.signature import Array

# By `dtype.char`, as `str(dtype)` takes longer than all the rest of a small tensor.
NUMBERS: dict[str, int] = {
    np.dtype(name).char: number
    for name, number in {
        "float16": types_pb2.DT_HALF, "float32": types_pb2.DT_FLOAT, "float64": types_pb2.DT_DOUBLE,
        "int8": types_pb2.DT_INT8, "int16": types_pb2.DT_INT16, "int32": types_pb2.DT_INT32,
        "int64": types_pb2.DT_INT64, "uint8": types_pb2.DT_UINT8, "uint16": types_pb2.DT_UINT16,
        "uint32": types_pb2.DT_UINT32, "uint64": types_pb2.DT_UINT64, "bool": types_pb2.DT_BOOL,
        "object": types_pb2.DT_STRING,
    }.items()
}  # fmt: skip
# The fields of TensorProto for values, with the field's tag: those whose values are stored as in memory, and the rest.
PACKED = {"f": ("float_val", b"\x2a"), "d": ("double_val", b"\x32")}
FIELDS: dict[str, tuple[str, bytes]] = {
    np.dtype(name).char: (field, tag)
    for name, field, tag in (
        ("int8", "int_val", b"\x3a"), ("int16", "int_val", b"\x3a"), ("int32", "int_val", b"\x3a"),
        ("uint8", "int_val", b"\x3a"), ("uint16", "int_val", b"\x3a"), ("int64", "int64_val", b"\x52"),
        ("bool", "bool_val", b"\x5a"), ("uint32", "uint32_val", b"\x82\x01"), ("uint64", "uint64_val", b"\x8a\x01"),
        ("object", "string_val", b"\x42"),
    )
}  # fmt: skip
_64_BITS = 2**64 - 1  # in which a negative number is written
_FEW = 64  # values that are written here; more are quicker in protobuf's own code
_FIRST, _SECOND = b"\x0a", b"\x12"  # tags of fields 1 and 2 with a length: key and value of a map's entry


def predict_response(model: str, signature: str, version: int, outputs: Mapping[str, Array]) -> bytes:
    """A serialised PredictResponse.

    Args:
        model: Name of the model as it was asked for.
        signature: The signature that answered.
        version: The version that answered.
        outputs: Name -> array.
    """
    parts = [_model_spec(model, signature, version)]
    for name, value in outputs.items():
        kind = value.dtype.char
        if kind in PACKED and value.size:
            parts += (_before_numbers(name, kind, value.shape, value.nbytes), value.tobytes())
        elif kind in FIELDS and 0 < value.size <= _FEW:
            parts.append(_entry(name, _type_and_shape(kind, value.shape) + _few(kind, value)))
        else:
            parts.append(_entry(name, _tensor(value)))
    return b"".join(parts)


@functools.lru_cache(64)
def _model_spec(model: str, signature: str, version: int) -> bytes:
    spec = model_pb2.ModelSpec(name=model, signature_name=signature)
    spec.version.value = version
    return _field(_SECOND, spec.SerializeToString())


@functools.lru_cache(256)
def _before_numbers(name: str, kind: str, shape: tuple[int, ...], size: int) -> bytes:
    """An entry of `outputs` without the values, which are its last `size` bytes."""
    whole = _entry(name, _type_and_shape(kind, shape) + _field(PACKED[kind][1], bytes(size)))
    return whole[: len(whole) - size]


@functools.lru_cache(256)
def _type_and_shape(kind: str, shape: tuple[int, ...]) -> bytes:
    """A TensorProto without values."""
    proto = tensor_pb2.TensorProto(dtype=NUMBERS[kind])
    _set_shape(proto, shape)
    return bytes(proto.SerializeToString())


def _few(kind: str, value: Array) -> bytes:
    """The values of a TensorProto that are not stored as in memory."""
    tag = FIELDS[kind][1]
    if kind == "O":
        return b"".join([_field(tag, text) for text in value.flat])
    return _field(tag, b"".join([varint(number & _64_BITS) for number in value.ravel().tolist()]))


def _entry(name: str, tensor: bytes) -> bytes:
    return _field(_FIRST, _field(_FIRST, name.encode()) + _field(_SECOND, tensor))


def _tensor(value: Array) -> bytes:
    kind = value.dtype.char
    if kind in FIELDS or kind in PACKED:
        proto = tensor_pb2.TensorProto(dtype=NUMBERS[kind])
        getattr(proto, (FIELDS.get(kind) or PACKED[kind])[0]).extend(value.ravel().tolist())
        _set_shape(proto, value.shape)
    else:
        proto = tf.make_tensor_proto(value)
    return bytes(proto.SerializeToString())


def _set_shape(proto: tensor_pb2.TensorProto, shape: tuple[int, ...]) -> None:
    proto.tensor_shape.SetInParent()
    for size in shape:
        proto.tensor_shape.dim.add().size = size


def _field(tag: bytes, content: bytes) -> bytes:
    return tag + varint(len(content)) + content
