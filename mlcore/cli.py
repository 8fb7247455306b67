"""The command line: `mlcore <step> --flag=value`.

Values come from the flag, else the environment (`MLCORE_<NAME>`), else the YAML file given with `--config`, else the
default. Results go to stdout, everything else to stderr.
"""

import ast
import difflib
import errno
import importlib
import importlib.util
import json
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import click

from mlcore import __version__
from mlcore.runtime import logs, results
from mlcore.runtime.config_file import read_config
from mlcore.runtime.ending import note_exit_code
from mlcore.runtime.errors import EXIT_BUG, MlcoreError, Stopped, TransientError, UsageError
from mlcore.runtime.outputs import atomic_file, is_disk_full
from mlcore.runtime.parameters import Parameter, merge, parameters_of
from mlcore.runtime.pipelines import ExecutorInput
from mlcore.runtime.signals import raise_on_stop

log = logging.getLogger(__name__)

STEPS = {
    "download": "mlcore.data.download:download",
    "extract": "mlcore.data.extract:extract",
    "convert": "mlcore.data.convert:convert",
    "train": "mlcore.detection.train:train",
    "evaluate": "mlcore.detection.evaluate:evaluate",
    "export": "mlcore.detection.export:export",
    "predict": "mlcore.detection.predict:predict",
    "serve": "mlcore.serving.serve:serve",
    "verify": "mlcore.serving.verify:verify",
    "versions": "mlcore.serving.versions:versions",
    "mnist-download": "mlcore.data.mnist:mnist_download",
    "mnist-train": "mlcore.mnist.train:mnist_train",
    "mnist-evaluate": "mlcore.mnist.evaluate:mnist_evaluate",
    "launch": "mlcore.kubeflow.launch:launch",
    "deploy": "mlcore.kubeflow.deploy:deploy",
}

# Beside the steps: for the people who develop with them. Neither images nor in steps/.
TOOLS = {
    "local-tfjob": "mlcore.kubeflow.local_tfjob:local_tfjob",
}

# What is wrong with a path, or with the rights to it.
_OF_A_PATH = frozenset(
    (errno.ENOENT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP, errno.EISDIR, errno.ENOTDIR)
)
_ALONE = "alone_"  # begins click's name of a value that stands alone on the command line


def _place_of(name: str) -> tuple[str, str]:
    """Module and function of a step or a tool."""
    module, _, function = (STEPS[name] if name in STEPS else TOOLS[name]).partition(":")
    return module, function


def load_step(name: str) -> Callable[..., Any]:
    """The public function of a step or a tool."""
    module, function = _place_of(name)
    return getattr(importlib.import_module(module), function)


def summary(name: str) -> str:
    """The first line of a step's docstring, read from its source: `mlcore --help` imports no step."""
    module, function = _place_of(name)
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None
    for node in ast.parse(Path(spec.origin).read_text()).body:
        if isinstance(node, ast.FunctionDef) and node.name == function:
            return (ast.get_docstring(node) or "").partition("\n")[0]
    raise LookupError(f"{module}:{function}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `mlcore` with these arguments (default: those of the process); the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("--help", "-h", "help"):
        click.echo(_overview())
        return 0 if arguments else UsageError.exit_code
    if arguments[0] == "--version":
        click.echo(f"mlcore {__version__}")
        return 0
    name = arguments[0]
    if name not in STEPS and name not in TOOLS:
        names = [*STEPS, *TOOLS]
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {close[0]}?" if close else f"expected one of {', '.join(names)}"
        click.echo(f"mlcore: error: no step {name!r}; {hint}", err=True)
        return UsageError.exit_code
    return run_step(name, arguments[1:])


def _overview() -> str:
    width = max(map(len, [*STEPS, *TOOLS]))
    steps, tools = ([f"  {name:{width}}  {summary(name)}" for name in table] for table in (STEPS, TOOLS))
    return "\n".join(
        [
            "Usage: mlcore STEP [--flag=value ...]",
            "",
            "Take a vision model from raw data to a served version, one step at a time.",
            "",
            "Steps:",
            *steps,
            "",
            "Tools:",
            *tools,
            "",
            "mlcore STEP --help explains every parameter of a step.",
        ]
    )


def run_step(name: str, arguments: Sequence[str] | None = None) -> int:
    """Run one step with these arguments (default: those of the process); the exit code."""
    exit_code = _exit_code_of(name, list(sys.argv[1:] if arguments is None else arguments))
    note_exit_code(exit_code)
    return exit_code


def _exit_code_of(name: str, arguments: list[str]) -> int:
    """Run one step. The only place where an error becomes an exit code."""
    logs.configure()
    raise_on_stop()
    try:
        return _run(name, arguments)
    except MlcoreError as error:
        _report(name, str(error))
        return error.exit_code
    except Stopped as stopped:
        _report(name, f"stopped by {stopped}")
        return stopped.exit_code
    except BrokenPipeError:
        _give_up_stdout()  # its reader is gone (`mlcore ... | head`)
        return 128 + 13
    except Exception as error:
        if isinstance(error, OSError) and (told := _of_the_system(error)) is not None:
            log.debug("where it came up", exc_info=True)
            try:
                sys.stdout.flush()
            except OSError:
                _give_up_stdout()
            _report(name, str(told))
            return told.exit_code
        log.exception("mlcore %s failed: this is a bug in mlcore, please report it with these lines", name)
        return EXIT_BUG


def _give_up_stdout() -> None:
    """Nothing more can be said there; else Python would try once more at its end, and end with 120."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _report(name: str, message: str) -> None:
    line = f"mlcore {name}: error: {' '.join(message.split())}"
    if logs.in_json():
        log.error(line)
    else:
        click.echo(line, err=True)


def _of_the_system(error: OSError) -> MlcoreError | None:
    """What the operating system refused and the user can mend, wherever in a step it came up; None for a bug."""
    if is_disk_full(error):
        place = error.filename or "a file or the output"
        return TransientError(f"{place}: no room on the disk ({error.strerror}); free some and run the step again")
    if error.filename is not None and error.errno in _OF_A_PATH:
        return UsageError(f"{os.fsdecode(error.filename)}: cannot be used ({error.strerror})")
    return None


def _common(
    *,
    config: Path | None = None,
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO",
    log_format: logs.LogFormat = "text",
    result_file: tuple[str, ...] = (),
    executor_input: str | None = None,
) -> None:
    """Parameters that every step has on the command line.

    Args:
        config: YAML file with parameters of the step (names as in Python: batch_size).
        log_level: Least level of the log lines on stderr.
        log_format: Form of the log lines; json for log collectors.
        result_file: NAME=PATH: write the result NAME of the step to the file PATH as well, as Pipelines wants its
            output parameters.
        executor_input: What Pipelines knows of its task ({{$}}): its inputs are parameters where no flag is given; the
            numbers and the report of the step become artifacts that it shows.
    """


def _run(name: str, arguments: list[str]) -> int:
    function = load_step(name)
    own, common = parameters_of(function), parameters_of(_common)
    command = _command(name, function, own, common)
    try:
        with command.make_context(f"mlcore {name}", arguments) as context:
            given = dict(context.params)
    except click.exceptions.Exit as done:  # --help, --version
        return done.exit_code
    except click.UsageError as error:
        raise UsageError(f"{error.format_message().rstrip('.')} (see mlcore {name} --help)") from error
    options = {parameter.name: parameter.default for parameter in common} | _resolve(common, given, {}, None)
    logs.configure(options["log_level"], options["log_format"])
    files = _result_files(options["result_file"], function)
    pipeline = ExecutorInput(options["executor_input"]) if options["executor_input"] else None
    config = read_config(options["config"], own) if options["config"] else {}
    values = _resolve(own, given, config, options["config"], pipeline.values if pipeline else {})
    result = function(**values)
    named = results.as_mapping(result)
    results.print_results(named)
    for result_name, path in files.items():
        if result_name not in named:  # a worker of a cluster has no results
            continue
        with atomic_file(path) as temporary:
            temporary.write_text(results.as_text(named[result_name]))
    if pipeline:
        places = [source.get(name) for source in (values, named) for name in ("output_dir", "model_dir")]
        pipeline.write(named, [Path(place) for place in places if place])
    return 0


def _command(
    name: str, function: Callable[..., Any], own: Sequence[Parameter], common: Sequence[Parameter]
) -> click.Command:
    """The click command that splits a command line into raw text values and writes the help."""
    from docstring_parser import parse

    text = parse(function.__doc__ or "")
    paragraphs = [text.short_description or "", text.long_description or ""]
    # Never required here: the value may come from the flag, the environment or the file as well.
    options: list[click.Parameter] = [
        click.Argument([_ALONE + parameter.name], required=False, metavar=f"[{parameter.word}]")
        for parameter in own
        if parameter.positional
    ]
    options += [_option(parameter) for parameter in (*own, *common)]
    if all(parameter.flag != "--version" for parameter in own):  # `export --version` is the number of the model
        options.append(click.Option(["--version"], is_flag=True, is_eager=True, expose_value=False,
                                    callback=_print_version, help="Show the version and end."))  # fmt: skip
    return click.Command(
        name,
        params=options,
        help="\n\n".join(filter(None, paragraphs)),
        epilog="Each parameter can also be given in the environment (--batch-size as MLCORE_BATCH_SIZE; several values "
        "apart by blanks or as a JSON list) or in the YAML file --config (as batch_size); a flag wins over the "
        "environment, that over the file.",
        context_settings={"help_option_names": ["--help", "-h"], "max_content_width": 110},
    )


def _print_version(context: click.Context, _option: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        click.echo(f"mlcore {__version__}")
        context.exit()


def _option(parameter: Parameter) -> click.Option:
    kinds = {str: "TEXT", int: "N", float: "X", bool: "true|false", Path: "PATH", dict: "KEY.KEY=VALUE"}
    repeated = parameter.many or parameter.type is dict
    notes = []
    if parameter.required:
        notes.append("required")
    if parameter.default_text:
        notes.append(f"default: {parameter.default_text}")
    if parameter.bounds:
        notes.append(str(parameter.bounds))
    if repeated:
        notes.append("may be repeated")
    if parameter.positional:
        notes.append(f"also without the flag, as {parameter.word}")
    if parameter.more_env:
        notes.append(f"also {', '.join(parameter.more_env)} in the environment")
    note = f"  [{'; '.join(notes)}]" if notes else ""
    # `--overwrite` alone means `--overwrite=true`. For all others click must not know of such a thing, not even as a
    # None or False: it would take the -5 of `--seed=-5` for an option.
    alone: dict[str, Any] = {"is_flag": False, "flag_value": "true"} if parameter.type is bool else {}
    return click.Option(
        [parameter.flag, parameter.name],
        metavar="|".join(map(str, parameter.choices)) or kinds[parameter.type],
        help=parameter.help + note,
        multiple=repeated,
        **alone,
    )


def _resolve(
    parameters: Sequence[Parameter],
    given: Mapping[str, Any],
    config: Mapping[str, Any],
    config_path: Path | None,
    pipeline: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """The arguments of a step. A parameter that nobody gave is absent, so that the step's own default holds."""
    arguments = {}
    missing = []
    for parameter in parameters:
        values: list[tuple[str, Any]] = []  # (source, value), the weakest first
        if parameter.name in config:
            values.append((f"{config_path}: {parameter.name}", config[parameter.name]))
        if parameter.name in pipeline:
            values.append((f"--executor-input: {parameter.name}", pipeline[parameter.name]))
        name = next((name for name in parameter.env if os.environ.get(name)), None)
        if name is not None:
            text = os.environ[name]
            values.append((name, _several(text) if parameter.many or parameter.type is dict else text))
        alone = given.get(_ALONE + parameter.name)
        if given.get(parameter.name) not in (None, ()):
            if alone is not None:
                raise UsageError(f"{parameter.flag}={given[parameter.name]}: given a second time as {alone}")
            values.append((parameter.flag, given[parameter.name]))
        elif alone is not None:
            values.append((parameter.word, alone))
        if parameter.type is dict and values:  # mappings add up
            merged: dict[str, Any] = {}
            for source, value in values:
                merged = merge(merged, parameter.convert_all(value, source))
            arguments[parameter.name] = merged
        elif values:
            source, value = values[-1]
            arguments[parameter.name] = parameter.convert_all(value, source)
        elif parameter.required:
            missing.append(parameter.flag)
    if missing:
        raise UsageError(f"{', '.join(missing)} must be given")
    return arguments


def _several(text: str) -> list[str]:
    """The values in an environment variable: apart by blanks, or as one JSON list or mapping, which may hold blanks."""
    try:
        is_json = text.lstrip().startswith(("[", "{")) and bool(json.loads(text))
    except ValueError:  # such as the pattern [ab]*.jpg
        is_json = False
    return [text.strip()] if is_json else text.split()


def _result_files(texts: Sequence[str], function: Callable[..., Any]) -> dict[str, Path]:
    """`--result-file` values as result name -> path, checked before the work begins."""
    known = results.names_of(function)
    files = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not equals or not path or name not in known:
            raise UsageError(f"--result-file={text}: expected NAME=PATH, NAME one of {', '.join(known)}")
        files[name] = Path(path)
    return files
