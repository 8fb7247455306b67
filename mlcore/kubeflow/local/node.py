"""A value of a manifest together with its path, so that whatever is wrong with it is named by its path."""

import difflib
import json
from collections.abc import Iterator, Sequence
from typing import Any

from mlcore.runtime.errors import UsageError


class Node:
    """One value of a manifest.

    Args:
        value: As read from YAML; None where the manifest does not have it.
        path: Such as `spec.tfReplicaSpecs[Worker].replicas`.
        source: File and object, which stand before the path in messages.
    """

    def __init__(self, value: Any, path: str = "", source: str = "") -> None:
        self.value, self.path, self.source = value, path, source

    @property
    def given(self) -> bool:
        """Whether the manifest has it."""
        return self.value is not None

    def error(self, expected: str, *, show: bool = True) -> UsageError:
        """The error that this value is not what was expected."""
        text = self.value if isinstance(self.value, str) else json.dumps(self.value, default=str)
        shown = f"={text if len(text) <= 60 else f'{text[:57]}...'}" if show and self.given else ""
        where = f"{self.source}: " if self.source else ""
        return UsageError(f"{where}{self.path or 'the document'}{shown}: {expected}")

    def at(self, key: str, path: str | None = None) -> "Node":
        """The value under a key of a mapping."""
        value = self.mapping().get(key)
        return Node(value, path or (f"{self.path}.{key}" if self.path else key), self.source)

    def mapping(self) -> dict[str, Any]:
        """The value as a mapping; empty where it is not given."""
        if self.value is None:
            return {}
        if not isinstance(self.value, dict):
            raise self.error("expected a mapping")
        return self.value

    def entries(self) -> Iterator[tuple[str, "Node"]]:
        """Key and value of a mapping, in the manifest's order."""
        for key, value in self.mapping().items():
            if not isinstance(key, str):
                raise self.error(f"the key {key!r} is not text; put it in quotation marks")
            yield key, Node(value, f"{self.path}[{key}]", self.source)

    def items(self) -> list["Node"]:
        """The elements of a list."""
        if self.value is None:
            return []
        if not isinstance(self.value, list):
            raise self.error("expected a list")
        return [Node(value, f"{self.path}[{number}]", self.source) for number, value in enumerate(self.value)]

    def text(self, default: str | None = None) -> str:
        """The value as text; it must be given where there is no default."""
        if self.value is None:
            if default is None:
                raise self.error("must be given")
            return default
        if not isinstance(self.value, str):
            raise self.error("expected text; put it in quotation marks")
        return self.value

    def texts(self) -> tuple[str, ...]:
        """The elements of a list of texts."""
        return tuple(item.text() for item in self.items())

    def choice(self, choices: Sequence[str], default: str) -> str:
        """The value as one of some texts."""
        text = self.text(default)
        if text not in choices:
            raise self.error(f"expected one of {', '.join(filter(None, choices))}")
        return text

    def integer(self, default: int | None = None, minimum: int = 0) -> int | None:
        """The value as a whole number."""
        if self.value is None:
            return default
        if isinstance(self.value, bool) or not isinstance(self.value, int) or self.value < minimum:
            raise self.error(f"expected a whole number from {minimum}")
        return self.value

    def boolean(self, default: bool = False) -> bool:
        """The value as true or false."""
        if self.value is None:
            return default
        if not isinstance(self.value, bool):
            raise self.error("expected true or false")
        return self.value

    def only(self, used: Sequence[str], ignored: Sequence[str] = ()) -> list[str]:
        """Refuse keys that would change something here and are not understood; a slip of the pen is one of them.

        Returns:
            The keys that are there and have no meaning on one machine.
        """
        known = [*used, *ignored]
        for key in self.mapping():
            if key in known:
                continue
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise self.at(str(key)).error(f"not known to mlcore local-tfjob{hint}", show=False)
        return [key for key in ignored if key in self.mapping()]
