"""A step's parameters, read from its signature and docstring: the only place where they are declared.

The command line, the environment variables, the YAML file, `--help`, the README tables and the Pipelines components are
all made from the `Parameter` objects of `parameters_of`.
"""

import collections.abc
import functools
import inspect
import json
import math
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar

from mlcore.runtime.errors import UsageError

P = ParamSpec("P")
R = TypeVar("R")

ENVIRONMENT_PREFIX = "MLCORE_"
_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


@dataclass(frozen=True)
class Range:
    """Bounds of a number, both included, for `Annotated[int, Range(min=1)]`."""

    min: float = -math.inf
    max: float = math.inf

    def __str__(self) -> str:
        if math.isinf(self.max):
            return f"at least {self.min:g}"
        if math.isinf(self.min):
            return f"at most {self.max:g}"
        return f"from {self.min:g} to {self.max:g}"


@dataclass(frozen=True)
class Sections:
    """Top-level keys of the YAML file that belong to a Mapping parameter, beside its own name."""

    names: tuple[str, ...]


@dataclass(frozen=True)
class Environment:
    """Further environment variables that a parameter honours, after its own `MLCORE_` one."""

    names: tuple[str, ...]


@dataclass(frozen=True)
class Positional:
    """A parameter whose value may also stand alone on the command line, in the order of the signature."""


@dataclass(frozen=True)
class Parameter:
    """One parameter of a step.

    Attributes:
        name: Python name.
        type: str, int, float, bool, Path or dict (a nested mapping).
        many: Whether it takes several values (a repeated flag; a tuple in Python).
        choices: The only values, where they are listed.
        bounds: Bounds of a number.
        default: Default; `inspect.Parameter.empty` where the parameter must be given.
        help: Its text in the docstring.
        sections: Top-level keys of the YAML file that belong to it.
        more_env: Environment variables that it honours after its own.
        positional: Whether its value may also stand alone on the command line.
    """

    name: str
    type: type
    many: bool
    choices: tuple[str | int, ...]
    bounds: Range | None
    default: Any
    help: str
    sections: tuple[str, ...] = ()
    more_env: tuple[str, ...] = ()
    positional: bool = False

    @property
    def flag(self) -> str:
        """`--batch-size`."""
        return "--" + self.name.replace("_", "-")

    @property
    def word(self) -> str:
        """`BATCH-SIZE`, what stands for a positional one in the usage line."""
        return self.name.replace("_", "-").upper()

    @property
    def env(self) -> tuple[str, ...]:
        """`MLCORE_BATCH_SIZE` first."""
        return (ENVIRONMENT_PREFIX + self.name.upper(), *self.more_env)

    @property
    def required(self) -> bool:
        """Whether it has no default."""
        return self.default is inspect.Parameter.empty

    @property
    def expected(self) -> str:
        """What a value must be, in words."""
        if self.choices:
            return "one of " + ", ".join(map(str, self.choices))
        words = {
            str: "text", int: "a whole number", float: "a number", bool: "true or false", Path: "a path",
            dict: "key.subkey=value",
        }[self.type]  # fmt: skip
        return f"{words} {self.bounds}" if self.bounds else words

    @property
    def default_text(self) -> str:
        """The default as one would write it on the command line; empty where there is none."""
        if self.required or self.default is None or self.default in ((), {}):
            return ""
        values = self.default if self.many else (self.default,)
        return ",".join(str(value).lower() if isinstance(value, bool) else str(value) for value in values)

    def convert(self, value: Any, source: str) -> Any:
        """A single value from text, YAML or Python as the parameter's type, checked.

        Args:
            value: The value.
            source: Where it comes from, for the message: `--steps`, `MLCORE_STEPS`, `steps in run.yaml`.

        Raises:
            UsageError: It is not of the type, not one of the choices or out of bounds.
        """
        try:
            converted = self._typed(value)
        except (ValueError, TypeError) as error:
            raise UsageError(f"{source}={_shown(value)}: expected {self.expected}") from error
        if self.choices and converted not in self.choices:
            raise UsageError(f"{source}={_shown(value)}: expected {self.expected}")
        if self.bounds and not self.bounds.min <= converted <= self.bounds.max:
            raise UsageError(f"{source}={_shown(value)}: expected {self.expected}")
        return converted

    def _typed(self, value: Any) -> Any:
        if self.type is dict:
            return _mapping(value)
        if isinstance(value, Mapping | list | tuple | set) or value is None:
            raise TypeError
        if self.type is bool:
            text = str(value).strip().lower()
            if text not in _TRUE + _FALSE:
                raise ValueError
            return text in _TRUE
        if self.type is int:
            if isinstance(value, bool):
                raise TypeError
            if isinstance(value, float) and not value.is_integer():
                raise ValueError
            return int(value)
        if self.type is float:
            number = float(value)
            if isinstance(value, bool) or not math.isfinite(number):
                raise ValueError
            return number
        if self.type is Path:
            if not str(value):
                raise ValueError
            return Path(value).expanduser()
        return str(value)

    def convert_all(self, values: Any, source: str) -> Any:
        """The parameter's value from one value, or from several where it takes several.

        Several may also come as the text of a JSON list, as Pipelines passes them: `["a", "b"]`.

        Raises:
            UsageError: As `convert`.
        """
        if self.type is dict:
            merged: dict[str, Any] = {}
            for value in values if isinstance(values, list | tuple) else (values,):
                merged = merge(merged, self.convert(value, source))
            return merged
        if not self.many:
            return self.convert(values, source)
        if isinstance(values, str | Path) or not isinstance(values, collections.abc.Iterable):
            values = (values,)
        return tuple(self.convert(value, source) for text in values for value in self._listed(text))

    def _listed(self, value: Any) -> list[Any]:
        """The members of the text of a JSON list, or between the commas of names and numbers; else the value alone."""
        if isinstance(value, str) and "," in value and (self.choices or self.type in (int, float)) and value[0] != "[":
            return value.split(",")
        return _listed(value)


def _listed(value: Any) -> list[Any]:
    """The members of the text of a JSON list; any other value as the only one."""
    if isinstance(value, str) and value.startswith("[") and value.endswith("]"):
        try:
            members: list[Any] = json.loads(value)
        except ValueError:  # such as the pattern [ab]*.[jp]
            return [value]
        return members
    return [value]


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Two nested mappings as one; where both have a value, that of `over`."""
    merged = dict(base)
    for key, value in over.items():
        before = merged.get(key)
        merged[key] = merge(before, value) if isinstance(before, Mapping) and isinstance(value, Mapping) else value
    return merged


def _mapping(value: Any) -> dict[str, Any]:
    """`{"a": {"b": 3}}` from itself, from its JSON text, or from the text `a.b=3`, whose value is YAML."""
    if isinstance(value, Mapping):
        return dict(value)
    if not isinstance(value, str):
        raise TypeError
    if value.startswith("{"):
        return dict(json.loads(value))
    import yaml  # late: few runs need it

    path, equals, text = value.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise ValueError
    try:
        nested: Any = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError from error
    for key in reversed(keys):
        nested = {key: nested}
    return typing.cast(dict[str, Any], nested)


@functools.cache
def parameters_of(function: Callable[..., Any]) -> tuple[Parameter, ...]:
    """The parameters of a step.

    Raises:
        TypeError: The signature has something that no command line could give, or a parameter without documentation;
            a mistake in the step, not of its user.
    """
    from docstring_parser import parse

    function = inspect.unwrap(function)
    hints = typing.get_type_hints(function, include_extras=True)
    texts = {
        entry.arg_name: " ".join((entry.description or "").split()) for entry in parse(function.__doc__ or "").params
    }
    parameters = []
    for name, spec in inspect.signature(function).parameters.items():
        if spec.kind is not inspect.Parameter.KEYWORD_ONLY:
            raise TypeError(f"{function.__name__}({name}): parameters of a step are keyword-only")
        if not texts.get(name):
            raise TypeError(f"{function.__name__}({name}): not documented")
        parameters.append(_parameter(name, hints[name], spec.default, texts[name]))
    return tuple(parameters)


def _parameter(name: str, hint: Any, default: Any, text: str) -> Parameter:
    bounds: Range | None = None
    sections: tuple[str, ...] = ()
    more_env: tuple[str, ...] = ()
    many = positional = False
    while True:
        origin, arguments = typing.get_origin(hint), typing.get_args(hint)
        if origin is typing.Annotated:
            hint = arguments[0]
            for extra in arguments[1:]:
                if isinstance(extra, Range):
                    bounds = extra
                elif isinstance(extra, Sections):
                    sections = extra.names
                elif isinstance(extra, Environment):
                    more_env = extra.names
                elif isinstance(extra, Positional):
                    positional = True
        elif origin in (typing.Union, types.UnionType):
            (hint,) = (argument for argument in arguments if argument is not types.NoneType)
        elif origin is tuple and arguments[1:] == (...,):
            many, hint = True, arguments[0]
        else:
            break
    choices: tuple[str | int, ...] = ()
    if origin is Literal:
        choices, hint = arguments, type(arguments[0])
    elif origin in (Mapping, collections.abc.Mapping, dict):
        hint = dict
    if hint not in (str, int, float, bool, Path, dict):
        raise TypeError(f"{name}: {hint} cannot be given on a command line")
    return Parameter(name, hint, many, choices, bounds, default, text, sections, more_env, positional)


def step(function: Callable[P, R]) -> Callable[P, R]:
    """Make a function a step: its arguments are checked and converted by its own signature, for Python callers too."""

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        known = {parameter.name: parameter for parameter in parameters_of(function)}
        for name, value in kwargs.items():
            parameter = known.get(name)
            if parameter is not None and not (value is None and parameter.default is None):
                kwargs[name] = parameter.convert_all(value, name)
        return function(*args, **kwargs)

    return checked
