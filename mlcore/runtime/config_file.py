"""The file of `--config`: parameters of a step as YAML."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlcore.runtime.errors import UsageError
from mlcore.runtime.parameters import Parameter, merge


def read_config(path: Path, parameters: Sequence[Parameter]) -> dict[str, Any]:
    """Parameter name -> value; sections are gathered under their parameter.

    Raises:
        UsageError: It cannot be read, is not YAML, or has a key twice or one that is no parameter.
    """
    import yaml  # late: most runs have no such file

    from mlcore.runtime.yaml_keys import repeated_key

    try:
        text = path.read_text()
        content = yaml.safe_load(text)
        twice = repeated_key(yaml.compose(text, Loader=yaml.SafeLoader))
    except OSError as error:
        raise UsageError(f"--config={path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: not UTF-8, or 2020-13-45 as a date
        raise UsageError(f"--config={path}: not YAML: {error}") from error
    if twice is not None:
        raise UsageError(f"--config={path}: line {twice.start_mark.line + 1}: {twice.value} is there twice")
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UsageError(f"--config={path}: expected name: value lines")
    names = {parameter.name for parameter in parameters}
    owners = {section: parameter.name for parameter in parameters for section in parameter.sections}
    values: dict[str, Any] = {}
    for key, value in content.items():
        name = str(key).replace("-", "_")
        if name in owners:
            values[owners[name]] = merge(values.get(owners[name], {}), {name: value})
        elif name in names:
            before = values.get(name)  # batch-size and batch_size are the same name
            values[name] = merge(before, value) if isinstance(before, dict) and isinstance(value, dict) else value
        else:
            close = difflib.get_close_matches(name, [*names, *owners], n=1)
            hint = f"did you mean {close[0]}?" if close else f"expected one of {', '.join(sorted(names))}"
            raise UsageError(f"{path}: unknown key {key}; {hint}")
    return values
