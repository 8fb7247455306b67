"""Parameters come from a step's signature, and are checked the same way wherever a value comes from."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlcore.runtime.errors import UsageError
from mlcore.runtime.parameters import Environment, Positional, Range, merge, parameters_of, step


@dataclass(frozen=True)
class Result:
    count: int


@step
def sample(
    *,
    data_dir: Path,
    rate: Annotated[float, Range(min=0, max=1)] = 0.5,
    steps: Annotated[int | None, Range(min=1)] = None,
    url: tuple[str, ...] = (),
    layout: Literal["auto", "voc"] = "auto",
    overwrite: bool = False,
    home: Annotated[Path | None, Environment(("SAMPLE_HOME",))] = None,
    overrides: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the arguments.

    Args:
        data_dir: Folder.
        rate: Share.
        steps: Steps.
        url: Address.
        layout: Layout.
        overwrite: Overwrite.
        home: Home.
        overrides: Overrides.
    """
    return {
        "data_dir": data_dir,
        "rate": rate,
        "steps": steps,
        "url": url,
        "overwrite": overwrite,
        "overrides": overrides,
    }


def by_name(name):
    return next(parameter for parameter in parameters_of(sample) if parameter.name == name)


def test_signature_gives_flag_environment_type_and_help():
    rate = by_name("rate")
    assert (rate.flag, rate.env, rate.type, rate.default, rate.help) == (
        "--rate",
        ("MLCORE_RATE",),
        float,
        0.5,
        "Share.",
    )
    assert by_name("data_dir").required
    assert by_name("steps").type is int and by_name("steps").default is None
    assert by_name("url").many and by_name("url").type is str
    assert by_name("layout").choices == ("auto", "voc")
    assert by_name("home").env == ("MLCORE_HOME", "SAMPLE_HOME")
    assert by_name("overrides").type is dict


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("rate", "0.25", 0.25),
        ("steps", "7", 7),
        ("steps", 7.0, 7),
        ("overwrite", "True", True),
        ("overwrite", "off", False),
        ("data_dir", "a/b", Path("a/b")),
        ("overrides", "a.b=3", {"a": {"b": 3}}),
        ("overrides", "a.b=[1, x]", {"a": {"b": [1, "x"]}}),
    ],
)
def test_text_becomes_the_type(name, text, value):
    assert by_name(name).convert(text, "here") == value


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("rate", "much", "--x=much: expected a number from 0 to 1"),
        ("rate", "1.5", "from 0 to 1"),
        ("rate", "nan", "from 0 to 1"),
        ("steps", "0", "a whole number at least 1"),
        ("steps", 2.5, "a whole number"),
        ("steps", True, "a whole number"),
        ("layout", "coco", "expected one of auto, voc"),
        ("overwrite", "maybe", "true or false"),
        ("data_dir", "", "a path"),
        ("data_dir", ["a"], "a path"),
        ("overrides", "a.b", "key.subkey=value"),
        ("overrides", "a..b=1", "key.subkey=value"),
    ],
)
def test_wrong_value_names_source_value_and_expectation(name, value, words):
    with pytest.raises(UsageError) as caught:
        by_name(name).convert(value, "--x")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_python_callers_get_the_same_checks_and_conversions():
    assert sample(data_dir="folder", steps="3", url="one")["data_dir"] == Path("folder")
    assert sample(data_dir="folder", url=["a", "b"])["url"] == ("a", "b")
    assert sample(data_dir="folder", steps=None)["steps"] is None
    with pytest.raises(UsageError, match="rate=3: expected a number from 0 to 1"):
        sample(data_dir="folder", rate=3)
    with pytest.raises(TypeError, match="nonsense"):
        sample(data_dir="folder", nonsense=1)


def test_undocumented_parameter_is_refused():
    def undocumented(*, size: int = 1) -> None:
        """Do it."""

    with pytest.raises(TypeError, match="not documented"):
        parameters_of(undocumented)


@given(st.integers())
def test_every_whole_number_survives_its_text(number):
    if number >= 1:
        assert by_name("steps").convert(str(number), "x") == number


nested = st.recursive(st.integers(), lambda inner: st.dictionaries(st.text(max_size=2), inner, max_size=3))


@given(
    st.dictionaries(st.text(max_size=2), nested, max_size=3), st.dictionaries(st.text(max_size=2), nested, max_size=3)
)
def test_merge_keeps_every_leaf_of_the_stronger(base, over):
    merged = merge(base, over)
    assert merge(merged, over) == merged
    assert set(merged) == set(base) | set(over)


def test_a_positional_parameter_keeps_its_flag_and_its_variable():
    @step
    def placed(*, folder: Annotated[Path, Positional()], count: int = 1) -> None:
        """Do it.

        Args:
            folder: Folder.
            count: Count.
        """

    folder, count = parameters_of(placed)
    assert folder.positional and not count.positional
    assert (folder.flag, folder.env, folder.word) == ("--folder", ("MLCORE_FOLDER",), "FOLDER")
