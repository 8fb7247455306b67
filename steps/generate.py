"""Write the generated parts of steps/: each step's entry point, component.yaml and the tables of its README.

    python -m steps.generate           write them
    python -m steps.generate --check   exit 1 and name the files that are not what they should be

The text outside the two marker lines of a README is written by hand and kept.
"""

import argparse
import dataclasses
import sys
from pathlib import Path

from docstring_parser import parse

from mlcore.cli import STEPS, load_step
from mlcore.runtime.parameters import Parameter, parameters_of
from mlcore.runtime.results import result_type
from steps.component import component_yaml

FOLDER = Path(__file__).parent
BEGIN = "<!-- Generated from the signature by `make steps`; changes here are lost. -->"
END = "<!-- End of the generated part. -->"

ENTRY_POINT = '''"""Entry point of the {name} image."""

from mlcore.cli import run_step

raise SystemExit(run_step("{name}"))
'''


def cell(text: str) -> str:
    """Text that cannot end a Markdown table's cell."""
    return text.replace("|", "\\|").replace("<", "&lt;")


def row(parameter: Parameter) -> str:
    """One parameter as a row of the table."""
    default = "**required**" if parameter.required else f"`{parameter.default_text}`" if parameter.default_text else ""
    notes = [parameter.help]
    if parameter.choices:
        notes.append("One of " + ", ".join(f"`{choice}`" for choice in parameter.choices) + ".")
    elif parameter.bounds:
        notes.append(f"{str(parameter.bounds).capitalize()}.")
    if parameter.positional:
        notes.append(f"The value may stand alone, without the flag, as {parameter.word}.")
    if parameter.many or parameter.type is dict:
        notes.append("May be repeated.")
    environment = ", ".join(f"`{name}`" for name in parameter.env)
    return f"| `{parameter.flag}` | {environment} | {cell(default)} | {cell(' '.join(notes))} |"


def generated(name: str) -> str:
    """The generated part of a step's README."""
    function = load_step(name)
    documentation = parse(function.__doc__ or "")
    lines = [BEGIN, "", documentation.short_description or "", ""]
    if documentation.long_description:
        lines += [documentation.long_description, ""]
    lines += ["## Parameters", "", "| flag | environment | default | meaning |", "| --- | --- | --- | --- |"]
    lines += [row(parameter) for parameter in parameters_of(function)]
    result = result_type(function)
    assert result is not None, f"{name} returns no dataclass"
    texts = {
        entry.arg_name: " ".join((entry.description or "").split()) for entry in parse(result.__doc__ or "").params
    }
    lines += [
        "",
        "## Results",
        "",
        "Printed on stdout as `name=value`; `--result-file=NAME=PATH` writes one to a file.",
        "",
    ]
    lines += ["| name | meaning |", "| --- | --- |"]
    for field in dataclasses.fields(result):
        if not texts.get(field.name):
            raise SystemExit(f"{name}: {result.__name__}.{field.name} is not in the docstring's Attributes")
        lines.append(f"| `{field.name}` | {cell(texts[field.name])} |")
    raised = [f"- `{entry.type_name}`: {' '.join((entry.description or '').split())}" for entry in documentation.raises]
    if raised:
        lines += ["", "## Errors", "", *raised]
    return "\n".join([*lines, "", END])


def wanted(name: str) -> dict[Path, str]:
    """Path -> content of the files of one step."""
    readme = FOLDER / name / "README.md"
    old = readme.read_text() if readme.exists() else f"# {name}\n\n{BEGIN}\n{END}\n"
    before, begin, rest = old.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{readme}: the two marker lines of the generated part are missing")
    return {
        FOLDER / name / "__main__.py": ENTRY_POINT.format(name=name),
        FOLDER / name / "component.yaml": component_yaml(name),
        readme: before + generated(name) + after,
    }


def main() -> int:
    """Write or check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a file is stale")
    check = parser.parse_args().check
    stale = 0
    for name in STEPS:
        for path, text in wanted(name).items():
            if path.exists() and path.read_text() == text:
                continue
            stale += 1
            if check:
                print(f"{path} is stale: run make steps", file=sys.stderr)
            else:
                path.parent.mkdir(exist_ok=True)
                path.write_text(text)
                print(f"wrote {path}")
    known = {*STEPS, "__pycache__"}
    for folder in FOLDER.iterdir():
        if folder.is_dir() and folder.name not in known:
            stale += 1
            print(f"{folder} is no step", file=sys.stderr)
    return 1 if check and stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
