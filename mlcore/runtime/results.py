r"""Results on stdout, as lines that Katib's StdOut collector reads without configuration.

Its pattern for text is `([\w|-]+)\s*=\s*([+-]?\d*(\.\d+)?([Ee][+-]?\d+)?)` after an RFC 3339 time and a space;
older versions lack the exponent, so numbers are in fixed point.
"""

import dataclasses
import datetime
import inspect
import json
import math
import sys
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def format_number(value: float | int) -> str:
    """A number in fixed point with at least six significant digits, without an exponent."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    if not math.isfinite(value):
        return str(value)
    digits = 6 if value == 0 or abs(value) >= 1 else 5 - math.floor(math.log10(abs(value)))
    return f"{value:.{min(digits, 30)}f}"


def print_metrics(**metrics: float | int) -> None:
    """Print each metric as `<time> name=value`; one that is not finite is left out, since Katib takes it as empty."""
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    for name, value in metrics.items():
        number = value if isinstance(value, int) else float(value)
        if math.isfinite(number):
            print(f"{now} {name}={format_number(number)}", flush=True)


def as_mapping(result: Any) -> dict[str, Any]:
    """The named results of a step: the fields of its dataclass, or nothing."""
    if result is None:
        return {}
    return {field.name: getattr(result, field.name) for field in dataclasses.fields(result)}


def result_type(function: Callable[..., Any]) -> type | None:
    """The dataclass that a step returns; a member of a cluster that has no results may return None instead."""
    returned = typing.get_type_hints(inspect.unwrap(function)).get("return")
    choices = (returned, *typing.get_args(returned))
    return next((kind for kind in choices if isinstance(kind, type) and dataclasses.is_dataclass(kind)), None)


def names_of(function: Callable[..., Any]) -> tuple[str, ...]:
    """The names of a step's results."""
    returned = result_type(function)
    return tuple(field.name for field in dataclasses.fields(returned)) if returned else ()


def as_text(value: Any) -> str:
    """A result as an orchestrator passes it on: plain text, JSON for what has parts, nothing for None."""
    if value is None:
        return ""
    if isinstance(value, float) and math.isnan(value):
        return "NaN"  # as readers of JSON know it
    if isinstance(value, float | int):
        return format_number(value)
    if isinstance(value, str | Path):
        return str(value)
    return json.dumps(value, default=str, sort_keys=True)


def print_results(results: Mapping[str, Any]) -> None:
    """Print the results of a step on stdout: numbers as metrics, the rest as `name=text`."""
    for name, value in results.items():
        if value is None:
            continue
        if isinstance(value, float | int) and not isinstance(value, bool):
            print_metrics(**{name: value})
        else:
            print(f"{name}={as_text(value)}", file=sys.stdout, flush=True)
