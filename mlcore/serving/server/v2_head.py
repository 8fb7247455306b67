"""The JSON of an Open Inference (V2) request: read once, and again only for another signature.

A client that sends binary tensors sends the same JSON before them each time, so what was found in it can be kept.
"""

from typing import Any

from mlcore.serving.server import json_tensors, v2_tensors
from mlcore.serving.server.errors import RequestError
from mlcore.serving.server.signature import Array, Signature, TensorSpec


class Head:
    """The JSON of a request.

    Args:
        text: It as it came.

    Attributes:
        id: The request's id; empty where it has none.
        parameters: Parameters of the request as a whole.

    Raises:
        RequestError: It is none.
    """

    __slots__ = ("_content", "_plan", "id", "parameters")

    def __init__(self, text: bytes) -> None:
        content = json_tensors.loads(text)
        if not isinstance(content, dict):
            raise RequestError("the request must be a JSON object with 'inputs'")
        self.id = str(content.get("id") or "")
        self.parameters = _parameters(content, "the request")
        self._content = content
        self._plan: Plan | None = None

    def plan(self, signature: Signature) -> "Plan":
        """How to answer it with a signature.

        Raises:
            RequestError: It does not fit the signature; the message names the field.
        """
        plan = self._plan
        if plan is None or plan.signature is not signature:
            plan = self._plan = Plan(signature, self._content, self.parameters)
        return plan


class Plan:
    """How a request is read and answered with a signature.

    Attributes:
        signature: The signature.
        wanted: Name of each output to give -> whether in binary form.
        all_binary: Whether all of them are.
    """

    __slots__ = ("_examples", "_tensors", "all_binary", "signature", "wanted")

    def __init__(self, signature: Signature, content: dict[str, Any], parameters: dict[str, Any]) -> None:
        self.signature = signature
        self._tensors = _tensors(signature, content)
        self._examples: int | None = None
        self.wanted = _wanted(signature, content, parameters)
        self.all_binary = all(self.wanted.values())

    def decode(self, body: bytes, start: int) -> tuple[dict[str, Array], int]:
        """The inputs of a request, which fit the signature, and the number of examples in them.

        Args:
            body: Content of the request.
            start: Where its binary part begins.

        Raises:
            RequestError: The values do not fit; the message names the input.
        """
        values = {}
        for spec, shape, size, data, parameters in self._tensors:
            if size is None:
                values[spec.name] = v2_tensors.from_list(spec, shape, data, parameters)
                continue
            if size > len(body) - start:
                raise RequestError(
                    f"input {spec.name!r}: binary_data_size is {size}, {len(body) - start} bytes are left"
                )
            values[spec.name] = v2_tensors.from_raw(spec, shape, body, start, size)
            start += size
        if start != len(body):
            raise RequestError(f"{len(body) - start} bytes more than the inputs' binary_data_size say")
        if self._examples is None:  # types and shapes are of the head, so once is enough
            self._examples = self.signature.check(values)
        return values, self._examples


_Tensor = tuple[TensorSpec, list[int], int | None, Any, dict[str, Any]]


def _tensors(signature: Signature, content: dict[str, Any]) -> list[_Tensor]:
    """Specification, shape, bytes behind the JSON, values in the JSON and parameters of each input."""
    tensors = content.get("inputs")
    if not isinstance(tensors, list) or not all(isinstance(tensor, dict) for tensor in tensors):
        raise RequestError("'inputs': expected a list of tensors")
    signature.check_names({str(tensor.get("name")): None for tensor in tensors})
    if len(tensors) != len(signature.inputs):
        raise RequestError("'inputs': an input is given twice")
    found: list[_Tensor] = []
    for tensor in tensors:
        spec = signature.inputs[str(tensor["name"])]
        v2_tensors.check_datatype(spec, tensor.get("datatype"))
        shape = v2_tensors.shape_of(spec, tensor.get("shape"))
        parameters = _parameters(tensor, f"input {spec.name!r}")
        size = parameters.get("binary_data_size")
        if size is not None and (type(size) is not int or size < 0):
            raise RequestError(f"input {spec.name!r}: binary_data_size is {size}; expected a number of bytes")
        found.append((spec, shape, size, tensor.get("data"), parameters))
    return found


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


def _parameters(content: dict[str, Any], where: str) -> dict[str, Any]:
    parameters = content.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise RequestError(f"'parameters' of {where}: expected an object")
    return parameters
