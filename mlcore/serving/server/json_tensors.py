"""Tensors as JSON, as TensorFlow Serving's REST interface has them.

https://www.tensorflow.org/tfx/serving/api_rest: rows (`instances` -> `predictions`) or columns (`inputs` -> `outputs`);
bytes are {"b64": "..."}, and so are outputs whose name ends in `_bytes`; NaN and Infinity are written as such.
"""

import base64
import binascii
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson

from mlcore.serving.server.errors import RequestError
from mlcore.serving.server.signature import Array, Arrays, Signature, TensorSpec

_BYTES_SUFFIX = "_bytes"
_B64 = "b64"
_OPTIONS = orjson.OPT_SERIALIZE_NUMPY


def loads(body: bytes) -> Any:
    """A request's JSON.

    Raises:
        RequestError: It is none.
    """
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        if b"NaN" in body or b"Infinity" in body:  # not JSON, but TensorFlow Serving takes them
            try:
                return json.loads(body)
            except ValueError:
                pass
        raise RequestError(f"JSON parse error: {error}") from error


def dumps(value: Any, finite: bool = True) -> bytes:
    """A response's JSON; arrays may be in it. Not finite numbers become NaN and Infinity, not null."""
    if finite:
        return orjson.dumps(value, option=_OPTIONS)
    return json.dumps(value, default=lambda array: array.tolist(), separators=(",", ":")).encode()


def read_request(body: Any) -> tuple[str | None, str]:
    """The signature's name and the form (`instances` or `inputs`) of a request.

    Raises:
        RequestError: It is not a request.
    """
    if not isinstance(body, dict):
        raise RequestError("the request must be a JSON object with 'instances' or 'inputs'")
    forms = [form for form in ("instances", "inputs") if form in body]
    if len(forms) != 1:
        raise RequestError(f"expected one of 'instances' and 'inputs' in the request, found {len(forms)} of them")
    name = body.get("signature_name")
    if name is not None and not isinstance(name, str):
        raise RequestError(f"'signature_name': expected text, not {name!r}")
    return name, forms[0]


def decode(signature: Signature, body: dict[str, Any], form: str) -> dict[str, Array]:
    """The inputs of a request.

    Raises:
        RequestError: They do not fit the signature; the message names the input.
    """
    columns = _columns(signature, body["inputs"]) if form == "inputs" else _rows(signature, body["instances"])
    signature.check_names(columns)
    return {name: to_array(spec, columns[name]) for name, spec in signature.inputs.items()}


def _columns(signature: Signature, inputs: Any) -> Mapping[str, Any]:
    if isinstance(inputs, dict) and not _is_b64(inputs):
        return inputs
    return {_only_input(signature, "inputs"): inputs}


def _rows(signature: Signature, instances: Any) -> Mapping[str, list[Any]]:
    if not isinstance(instances, list):
        raise RequestError("'instances': expected a list")
    named = [isinstance(row, dict) and not _is_b64(row) for row in instances]
    if not instances and len(signature.inputs) > 1:
        return {name: [] for name in signature.inputs}
    if not any(named):
        return {_only_input(signature, "instances"): instances}
    if not all(named):
        raise RequestError(f"'instances': row {named.index(False)} is no object as the others are")
    names = instances[0].keys()
    for index, row in enumerate(instances):
        if row.keys() != names:
            raise RequestError(
                f"'instances': row {index} has {', '.join(sorted(row))}, row 0 has {', '.join(sorted(names))}"
            )
    return {name: [row[name] for row in instances] for name in names}


def _only_input(signature: Signature, form: str) -> str:
    if len(signature.inputs) != 1:
        raise RequestError(
            f"{form!r}: signature {signature.name!r} has several inputs ({', '.join(sorted(signature.inputs))}); "
            "each must be given by its name"
        )
    return next(iter(signature.inputs))


def _is_b64(value: Any) -> bool:
    return isinstance(value, dict) and len(value) == 1 and _B64 in value


def to_array(spec: TensorSpec, value: Any) -> Array:
    """Nested lists as an array of the specification's type.

    Raises:
        RequestError: An element is of another type, or rows differ in length.
    """
    if spec.dtype == object:
        return _strings(spec, value)
    try:
        array = np.array(value)
    except (ValueError, OverflowError):
        array = np.array(None)
    if array.dtype == object:
        raise RequestError(f"input {spec.name!r}: rows differ in length, or something is not a number")
    if array.size == 0:
        return _empty(spec, array)
    wanted = spec.dtype.kind
    fits = {"b": "b", "i": "iu", "u": "iu", "f": "iuf"}.get(wanted, "iuf")
    if array.dtype.kind not in fits:
        words = {"b": "true or false", "i": "a whole number", "u": "a whole number", "f": "a number"}
        found = {"U": "text", "S": "text", "b": "true or false", "f": "a number with a fraction"}
        given = found.get(array.dtype.kind, str(array.dtype))
        raise RequestError(f"input {spec.name!r}: expected {words.get(wanted, spec.dtype_text)}, not {given}")
    if wanted in "iu":
        bounds = np.iinfo(spec.dtype)
        if array.min() < bounds.min or array.max() > bounds.max:
            raise RequestError(f"input {spec.name!r}: a value is beyond the range of {spec.dtype_text}")
    with np.errstate(over="ignore"):
        return array.astype(spec.dtype)


def _empty(spec: TensorSpec, array: Array) -> Array:
    """No examples: JSON cannot say of what shape."""
    if spec.shape and array.ndim < len(spec.shape) and spec.any_batch:
        rest = tuple(size if size is not None else 0 for size in spec.shape[max(array.ndim, 1) :])
        return np.zeros((*(array.shape or (0,)), *rest), spec.dtype)
    return array.astype(spec.dtype)


def _strings(spec: TensorSpec, value: Any) -> Array:
    """Nested lists of text or {"b64": ...} as an array of bytes."""
    flat: list[bytes] = []

    def walk(part: Any) -> tuple[int, ...]:
        if isinstance(part, list):
            shapes = {walk(child) for child in part}
            if len(shapes) > 1:
                raise RequestError(f"input {spec.name!r}: rows differ in length")
            return (len(part), *next(iter(shapes), ()))
        flat.append(_bytes(spec, part))
        return ()

    shape = walk(value)
    array = np.empty(len(flat), object)
    array[:] = flat
    if not flat:
        return _empty(spec, array.reshape(shape))
    return array.reshape(shape)


def _bytes(spec: TensorSpec, value: Any) -> bytes:
    if isinstance(value, str):
        return value.encode()
    if _is_b64(value) and isinstance(value[_B64], str):
        return from_base64(value[_B64], spec.name)
    raise RequestError(f'input {spec.name!r}: expected text or {{"b64": "..."}}, not {str(value)[:40]}')


def from_base64(text: str, name: str) -> bytes:
    """Bytes from base64, also without padding and with the URL's alphabet, as TensorFlow Serving takes it.

    Raises:
        RequestError: It is not base64.
    """
    try:
        plain = text.replace("-", "+").replace("_", "/")
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(f"input {name!r}: not base64: {error}") from error


def encode(outputs: Arrays, form: str) -> bytes:
    """The response with these outputs, in the form that goes with the request's.

    Raises:
        RequestError: Rows were asked for, and the outputs have no common number of rows.
    """
    finite = all(value.dtype.kind != "f" or bool(np.isfinite(value).all()) for value in outputs.values())
    values = {name: _plain(name, value) for name, value in outputs.items()}
    if form == "inputs":
        return dumps({"outputs": next(iter(values.values())) if len(values) == 1 else values}, finite)
    rows = {len(value) if value.ndim else None for value in outputs.values()}
    if len(rows) != 1 or None in rows:
        sizes = ", ".join(f"{name} {list(value.shape)}" for name, value in outputs.items())
        raise RequestError(f"outputs have no common number of rows ({sizes}): send 'inputs' in place of 'instances'")
    if len(values) == 1:
        return dumps({"predictions": next(iter(values.values()))}, finite)
    columns = [list(value) for value in values.values()]
    return dumps({"predictions": [dict(zip(values, row, strict=True)) for row in zip(*columns, strict=True)]}, finite)


def _plain(name: str, value: Array) -> Any:
    """An output that `dumps` can write."""
    if value.dtype != object:
        return np.ascontiguousarray(value) if value.ndim else value.item()
    as_b64 = name.endswith(_BYTES_SUFFIX)

    def convert(part: Any) -> Any:
        if isinstance(part, list):
            return [convert(child) for child in part]
        if not as_b64:
            try:
                return part.decode()
            except UnicodeDecodeError:
                pass
        return {_B64: base64.b64encode(part).decode()}

    return convert(value.tolist())
