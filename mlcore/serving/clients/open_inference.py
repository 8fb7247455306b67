"""What the REST and the gRPC of the Open Inference Protocol (V2) share: names of types, and bytes as raw data.

Numbers are little endian in row-major order; an element of BYTES has its length before it in four bytes.
"""

import struct
from typing import Any

import numpy as np

from mlcore.serving.clients.client import Array, as_bytes, bytes_array, is_texts

DATATYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_), "UINT8": np.dtype(np.uint8), "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32), "UINT64": np.dtype(np.uint64), "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16), "INT32": np.dtype(np.int32), "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16), "FP32": np.dtype(np.float32), "FP64": np.dtype(np.float64),
    "BYTES": np.dtype(object),
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in DATATYPES.items()}
_LENGTH = struct.Struct("<I")


def datatype_of(array: Array) -> str:
    """The protocol's name of an array's type."""
    if is_texts(array):
        return "BYTES"
    if array.dtype not in _NAMES:
        raise ValueError(f"an array of {array.dtype} has no type in the Open Inference Protocol")
    return _NAMES[array.dtype]


def to_raw(array: Array) -> bytes:
    """An array as raw data."""
    if is_texts(array):
        return b"".join(part for value in as_bytes(array).ravel() for part in (_LENGTH.pack(len(value)), value))
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()


def from_raw(content: bytes, datatype: str, shape: tuple[int, ...]) -> Array:
    """An array of raw data.

    Raises:
        ValueError: The type is not known, or the data does not fill the shape.
    """
    if datatype not in DATATYPES:
        raise ValueError(f"the type {datatype} is not known here")
    if datatype != "BYTES":
        dtype = DATATYPES[datatype]
        return np.frombuffer(content, dtype.newbyteorder("<")).astype(dtype).reshape(shape)
    values, position = [], 0
    while position < len(content):
        (length,) = _LENGTH.unpack_from(content, position)
        position += _LENGTH.size
        if position + length > len(content):
            raise ValueError("the raw data of BYTES ends within an element")
        values.append(content[position : position + length])
        position += length
    return bytes_array(values).reshape(shape)
