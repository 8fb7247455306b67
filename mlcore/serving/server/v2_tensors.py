"""Tensors of the Open Inference (V2) protocol: types by name, values as lists, as bytes after the JSON, or in gRPC.

https://github.com/kserve/open-inference-protocol, with the extension for binary tensor data. Strings in binary form
have four bytes of length before each. Numbers are little endian, as they are in the memory of what TensorFlow runs on.
"""

import functools
import math
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

from mlcore.serving.server.errors import RequestError
from mlcore.serving.server.json_tensors import from_base64
from mlcore.serving.server.signature import Array, TensorSpec

_DATATYPES = {
    "bool": "BOOL", "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64", "int8": "INT8",
    "int16": "INT16", "int32": "INT32", "int64": "INT64", "float16": "FP16", "float32": "FP32", "float64": "FP64",
    "bfloat16": "BF16", "object": "BYTES",
}  # fmt: skip
# Type -> the field of InferTensorContents; float16 has none and comes as raw bytes.
CONTENTS = {
    "BOOL": "bool_contents", "UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents",
    "UINT64": "uint64_contents", "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents",
    "INT64": "int64_contents", "FP32": "fp32_contents", "FP64": "fp64_contents", "BYTES": "bytes_contents",
}  # fmt: skip


@functools.cache  # numpy writes the name of a type anew at each `str`, which takes longer than a small tensor
def datatype_of(dtype: "np.dtype[Any]") -> str:
    """The protocol's name of a numpy type."""
    return _DATATYPES.get(str(dtype), str(dtype).upper())


def check_datatype(spec: TensorSpec, datatype: Any) -> None:
    """Compare a tensor's type with the specification.

    Raises:
        RequestError: It is another.
    """
    wanted = datatype_of(spec.dtype)
    if datatype != wanted:
        raise RequestError(f"input {spec.name!r}: expected datatype {wanted}, not {datatype}")


def shape_of(spec: TensorSpec, shape: Any) -> list[int]:
    """A tensor's shape.

    Raises:
        RequestError: It is none.
    """
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        raise RequestError(f"input {spec.name!r}: expected a shape such as [1, 28, 28, 1], not {str(shape)[:60]}")
    return shape


def from_raw(spec: TensorSpec, shape: list[int], body: bytes, start: int = 0, size: int | None = None) -> Array:
    """A tensor from its binary form; numbers are not copied.

    Args:
        spec: What it is.
        shape: Its shape.
        body: What it is in.
        start: Where it begins.
        size: Its bytes; None: all from there on.

    Raises:
        RequestError: The bytes do not make the shape.
    """
    if size is None:
        size = len(body) - start
    if spec.dtype.char != "O":
        try:
            if size == math.prod(shape) * spec.dtype.itemsize:
                return np.ndarray(shape, spec.dtype, body, start)
        except ValueError:  # more dimensions than numpy has
            pass
        raise RequestError(f"input {spec.name!r}: {size} bytes do not make shape {shape}")
    texts: list[bytes] = []
    stop = start + size
    while start < stop:
        end = start + 4
        length = struct.unpack_from("<I", body, start)[0] if end <= stop else -1
        if length < 0 or end + length > stop:
            raise RequestError(f"input {spec.name!r}: element {len(texts)} is longer than its bytes")
        texts.append(body[end : end + length])
        start = end + length
    return _strings(spec, shape, texts)


def to_raw(value: Array) -> bytes:
    """A tensor in its binary form."""
    if value.dtype.char != "O":
        return value.tobytes()
    return b"".join([len(text).to_bytes(4, "little") + text for text in value.ravel().tolist()])


def from_list(spec: TensorSpec, shape: list[int], data: Any, parameters: Mapping[str, Any]) -> Array:
    """A tensor from JSON: a flat list, or nested ones.

    Raises:
        RequestError: The list does not make the shape, or an element is of another type.
    """
    from mlcore.serving.server.json_tensors import to_array

    if not isinstance(data, list):
        raise RequestError(f"input {spec.name!r}: 'data' is missing or no list")
    flat = TensorSpec(spec.name, spec.dtype, None, spec.tensor)
    array = to_array(flat, data).reshape(-1)
    if spec.dtype == object:
        texts = list(array)
        if parameters.get("content_type") == "base64":
            texts = [from_base64(text.decode(errors="replace"), spec.name) for text in texts]
        return _strings(spec, shape, texts)
    return _shaped(spec, shape, array)


def from_contents(spec: TensorSpec, shape: list[int], contents: Any) -> Array:
    """A tensor from the typed field of a gRPC message.

    Raises:
        RequestError: The values do not make the shape.
    """
    field = CONTENTS.get(datatype_of(spec.dtype))
    if field is None:
        raise RequestError(f"input {spec.name!r}: {datatype_of(spec.dtype)} must come in raw_input_contents")
    values = getattr(contents, field)
    if spec.dtype == object:
        return _strings(spec, shape, list(values))
    array = np.array(values)
    if array.size and spec.dtype.kind in "iu":
        bounds = np.iinfo(spec.dtype)
        if array.min() < bounds.min or array.max() > bounds.max:
            raise RequestError(f"input {spec.name!r}: a value is beyond the range of {spec.dtype_text}")
    return _shaped(spec, shape, array.astype(spec.dtype))


def _strings(spec: TensorSpec, shape: list[int], texts: list[bytes]) -> Array:
    array = np.empty(len(texts), object)
    array[:] = texts
    return _shaped(spec, shape, array)


def _shaped(spec: TensorSpec, shape: list[int], values: Array) -> Array:
    if len(values) != int(np.prod(shape, dtype=np.int64)):
        raise RequestError(f"input {spec.name!r}: {len(values)} values do not make shape {shape}")
    return values.reshape(shape)


def to_list(value: Array) -> list[Any]:
    """A tensor as JSON has it: a flat list; bytes as text.

    Raises:
        RequestError: A text is not UTF-8.
    """
    if value.dtype != object:
        return value.ravel().tolist()
    try:
        return [text.decode() for text in value.flat]
    except UnicodeDecodeError as error:
        raise RequestError("an output has bytes that are no text: ask for binary data") from error


def metadata_tensors(specs: Mapping[str, TensorSpec]) -> list[dict[str, Any]]:
    """Tensors of a signature as the protocol's metadata has them; -1 where any size will do."""
    return [
        {
            "name": spec.name,
            "datatype": datatype_of(spec.dtype),
            "shape": [-1 if size is None else size for size in spec.shape or ()],
        }
        for spec in specs.values()
    ]
