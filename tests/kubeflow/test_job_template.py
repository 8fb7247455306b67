"""Manifests with placeholders: what is replaced, what is not, and what is said of mistakes."""

import pytest

from mlcore.kubeflow.job_template import difference, named, parse_values, read_text, render
from mlcore.runtime.errors import UsageError


def filled(text, **values):
    return render(f"a:\n  b: {text}\n", "m.yaml", values)["a"]["b"]


@pytest.mark.parametrize(
    ("text", "values", "expected"),
    [
        ("{{n}}", {"n": "3"}, 3),
        ("{{ n }}", {"n": "true"}, True),
        ("${n}", {"n": "0.5"}, 0.5),
        ('"{{n}}"', {"n": "3"}, "3"),
        ("'${n}'", {"n": "true"}, "true"),
        ("--steps={{n}}", {"n": "3"}, "--steps=3"),
        ("{{n}}", {"n": "2026-11-24"}, "2026-11-24"),
        ("2026-11-24", {}, "2026-11-24"),
        ("{{n}}", {"n": "a: b"}, "a: b"),
        ("{{n}}", {"n": "x\n  c: d # e"}, "x\n  c: d # e"),
        ("[{{n}}, '{{n}}{{m}}']", {"n": "1", "m": "2"}, [1, "12"]),
        ("{{n}}", {"n": ""}, None),
        ('"{{n}}"', {"n": "{{m}}"}, "{{m}}"),
        ('"echo ${HOME} $(hostname) ${trialParameters.rate} $${n}"', {},
         "echo ${HOME} $(hostname) ${trialParameters.rate} ${n}"),
        ('"${HOME}"', {"HOME": "/data"}, "/data"),
        ("x # not {{n}}", {}, "x"),
    ],
)  # fmt: skip
def test_placeholders(text, values, expected):
    assert filled(text, **values) == expected


@pytest.mark.parametrize(
    ("text", "values", "words"),
    [
        ("{{n}}", {}, "line 2: the placeholder n has no value; give --set=n=..., or write $${n}"),
        ("{{epochs}}", {"epoch": "1"}, "the placeholder epochs has no value (given: epoch); give --set=epochs"),
        ("${some-name}", {}, "the placeholder some-name has no value"),
        ("{{n}}", {"n": "1", "m": "2"}, "--set=m=...: m.yaml has no such placeholder; it has n"),
        ("x", {"m": "2"}, "it has none"),
        ("{{ .Values.x }}", {}, "{{ .Values.x }}: expected a name"),
        ("[", {}, "not YAML"),
        ("[{{n}", {"n": "1"}, "not YAML"),
        ("1\n  b: 2", {}, "line 3: b is there twice"),
        ("1\n---\na: 2", {}, "holds 2 documents, expected one object"),
    ],
)
def test_mistakes(text, values, words):
    with pytest.raises(UsageError) as raised:
        filled(text, **values)
    assert words in str(raised.value)
    assert "placeholder-" not in str(raised.value)


@pytest.mark.parametrize("text", ["", "---\n", "- 1\n", "text\n"])
def test_what_is_no_object(text):
    with pytest.raises(UsageError, match=r"expected (one|an) object"):
        render(text, "m.yaml", {})


def test_keys_anchors_and_blocks_are_replaced_as_well():
    text = """
x: &base
  ${label}/a: |
    run {{n}}
    and ${n}
y:
  <<: *base
  z: 1
"""
    assert render(text, "m.yaml", {"label": "team", "n": "5"}) == {
        "x": {"team/a": "run 5\nand 5\n"},
        "y": {"team/a": "run 5\nand 5\n", "z": 1},
    }


def test_values():
    assert parse_values(["a=1", "b=x=y", "c="]) == {"a": "1", "b": "x=y", "c": ""}
    for wrong in ("a", "=1", "1a=2", "a b=1"):
        with pytest.raises(UsageError, match="expected name=value"):
            parse_values([wrong])
    with pytest.raises(UsageError, match="a is given twice, before as '1'"):
        parse_values(["a=1", "a=2"])


def test_manifest_is_a_file_or_text(tmp_path):
    path = tmp_path / "m.yaml"
    path.write_text("kind: Job\n")
    assert read_text(str(path)) == ("kind: Job\n", str(path))
    for text in ("kind: Job\n", "{kind: Job}", "apiVersion: batch/v1", "\n kind: Job"):
        assert read_text(text)[0] == text
    with pytest.raises(UsageError, match="expected a file, - for standard input, or YAML text"):
        read_text(str(tmp_path / "missing.yaml"))
    with pytest.raises(UsageError, match="cannot be read"):
        read_text(str(tmp_path))


def test_names():
    job = {"metadata": {"name": "pets"}}
    assert named(job, "m", unique_name=False)["metadata"] == {"name": "pets"}
    assert {named(job, "m", unique_name=True)["metadata"]["name"][:-5] for _ in range(5)} == {"pets-"}
    long = named({"metadata": {"generateName": "x" * 70}}, "m", unique_name=False)["metadata"]["name"]
    assert len(long) <= 63
    for wrong in ({}, {"metadata": {}}, {"metadata": {"name": "Pets"}}, {"metadata": {"name": "1pets"}},
                  {"metadata": {"name": "x" * 64}}, {"metadata": {"name": 7}}):  # fmt: skip
        with pytest.raises(UsageError, match="metadata"):
            named(wrong, "m", unique_name=False)


def test_fields_that_a_server_adds_are_no_difference():
    wanted = {"a": [{"b": 1}], "c": {}, "d": None}
    assert difference(wanted, {"a": [{"b": 1, "more": 2}], "e": 3}, "spec") is None
    assert difference(wanted, {"a": [{"b": 2}]}, "spec") == "spec.a[0].b"
    assert difference(wanted, {"a": [{"b": 1}, {}]}, "spec") == "spec.a"
    assert difference({"a": 1}, None, "spec") == "spec"
