"""What a model takes and gives: names, types and shapes of tensors, and whether a request fits them. No TensorFlow."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mlcore.serving.server.errors import RequestError

DEFAULT_SIGNATURE = "serving_default"

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]


@dataclass(frozen=True)
class TensorSpec:
    """A tensor of a signature.

    Attributes:
        name: Its name for clients.
        dtype: Its numpy type; object for strings, whose elements are bytes.
        shape: Its dimensions, None where any size will do; None as a whole: any rank.
        tensor: Its name in the graph.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...] | None
    tensor: str

    @property
    def dtype_text(self) -> str:
        """The type in words."""
        return "string" if self.dtype == object else str(self.dtype)

    @property
    def shape_text(self) -> str:
        """The shape as one writes it: [?, 28, 28, 1]."""
        if self.shape is None:
            return "of any rank"
        return "[" + ", ".join("?" if size is None else str(size) for size in self.shape) + "]"

    @property
    def any_batch(self) -> bool:
        """Whether the first dimension may have any size."""
        return self.shape is not None and self.shape[:1] == (None,)

    def check(self, value: Array) -> None:
        """Compare a value with the specification.

        Raises:
            RequestError: Type or shape are others.
        """
        if value.dtype != self.dtype:
            given = "string" if value.dtype == object else value.dtype
            raise RequestError(f"input {self.name!r}: expected {self.dtype_text}, not {given}")
        if self.shape is None or value.shape == self.shape or (self.any_batch and value.shape[1:] == self.shape[1:]):
            return
        if value.ndim != len(self.shape) or any(
            wanted is not None and wanted != size for wanted, size in zip(self.shape, value.shape, strict=True)
        ):
            raise RequestError(f"input {self.name!r}: expected shape {self.shape_text}, not {list(value.shape)}")


@dataclass(frozen=True)
class Signature:
    """One way to call a model.

    Attributes:
        name: Its name.
        inputs: Name -> what it takes.
        outputs: Name -> what it gives.
        joinable: Whether several requests can be put together along the first dimension and their answers taken apart.
    """

    name: str
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]
    joinable: bool

    @functools.cached_property
    def one_size(self) -> bool:
        """Whether all examples are of one size, so that any go together, and one says how long a call takes."""
        return all(
            spec.dtype != object and spec.shape is not None and None not in spec.shape[1:]
            for spec in self.inputs.values()
        )

    def check_names(self, given: Mapping[str, Any]) -> None:
        """Compare names of inputs with those of the signature.

        Raises:
            RequestError: One is missing or not known.
        """
        if given.keys() != self.inputs.keys():
            missing, extra = sorted(self.inputs.keys() - given.keys()), sorted(given.keys() - self.inputs.keys())
            parts = ["missing: " + ", ".join(missing)] if missing else []
            parts += ["not known: " + ", ".join(extra)] if extra else []
            raise RequestError(
                f"inputs of signature {self.name!r}: {'; '.join(parts)}; expected {', '.join(sorted(self.inputs))}"
            )

    def check(self, given: Arrays) -> int:
        """Compare inputs, whose names were compared before, with the signature; the number of examples in them.

        Raises:
            RequestError: They do not fit; the message names the input.
        """
        for name, spec in self.inputs.items():
            spec.check(given[name])
        if not self.joinable:
            return 1
        if len(given) == 1:
            return len(next(iter(given.values())))
        sizes = {name: len(value) for name, value in given.items()}
        if len(set(sizes.values())) > 1:
            text = ", ".join(f"{name} {size}" for name, size in sizes.items())
            raise RequestError(f"inputs of signature {self.name!r} differ in their first dimension: {text}")
        return next(iter(sizes.values()))

    def select(self, outputs: list[str]) -> list[str]:
        """The names of the outputs to give: those asked for, or all.

        Raises:
            RequestError: One is not known.
        """
        for name in outputs:
            if name not in self.outputs:
                raise RequestError(f"output {name!r}: signature {self.name!r} has {', '.join(sorted(self.outputs))}")
        return outputs or list(self.outputs)


def make_signature(name: str, inputs: Mapping[str, TensorSpec], outputs: Mapping[str, TensorSpec]) -> Signature:
    """A signature; it is joinable if every input and output may have any size in its first dimension."""
    joinable = (
        bool(inputs)
        and all(spec.any_batch for spec in inputs.values())
        and all(spec.shape is None or spec.any_batch for spec in outputs.values())
    )
    return Signature(name, dict(inputs), dict(outputs), joinable)
