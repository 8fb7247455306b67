"""The one place where TensorFlow is imported: whole, without Keras, or as little of it as a server needs."""

import contextlib
import importlib
import importlib.util
import logging
import os
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

from mlcore.runtime.cores import limit_threads
from mlcore.runtime.errors import MlcoreError, TransientError, UsageError
from mlcore.runtime.extras import require
from mlcore.runtime.outputs import is_disk_full

_NAME = "tensorflow"
_KERAS = ("keras", "tf_keras")


def import_tensorflow(*, keras: bool = True, extra: str = "tf") -> Any:
    """TensorFlow, quiet, and told to use Keras 2: Keras 3 cannot train under parameter servers, nor official.vision.

    Args:
        keras: Off, Keras is not loaded, which is a third of the start-up; who uses it gets it at its first use.
        extra: Of mlcore, that brings what is needed.

    Raises:
        UsageError: TensorFlow is not installed; the message has the command.
    """
    if keras:
        os.environ["TF_USE_LEGACY_KERAS"] = "1"  # read once, at TensorFlow's import
    _prepare()
    # TensorFlow loads Keras at its import and goes on when it cannot; None in sys.modules says that it cannot.
    hidden = () if keras else tuple(name for name in _KERAS if name not in sys.modules)
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        tensorflow = require(_NAME, extra=extra)
    finally:
        for name in hidden:
            with contextlib.suppress(KeyError):
                del sys.modules[name]
    logging.getLogger(_NAME).setLevel(logging.ERROR)
    return tensorflow


def reason_of(error: BaseException) -> str:
    """An error of TensorFlow in one line: where several members of a cluster had one each, the first of them."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    if len(lines) > 1 and re.match(r"\d+ root error", lines[0]):
        return lines[1].removeprefix("(0)").strip()
    return lines[0]


def not_saved(model_dir: Path, step: int, error: BaseException) -> MlcoreError:
    """What to raise where a checkpoint could not be written: a full disk may have room when the training goes on."""
    what = f"--model-dir={model_dir}: the checkpoint of step {step} cannot be written"
    saved = "what was saved before is whole"
    if is_disk_full(error):
        return TransientError(f"{what}: no room on the disk; {saved}; free some and run again")
    return UsageError(f"{what} ({reason_of(error)}); {saved}")


class ServerModules(NamedTuple):
    """Modules of TensorFlow."""

    server_lib: Any
    config_pb2: Any
    errors: Any


def import_server_modules() -> ServerModules:
    """What of TensorFlow a server needs, without the rest of its Python.

    A server runs kernels, which are C++. The API around them takes five times as long to load; its modules can be had
    alone where `tensorflow/__init__.py`, which imports them all, does not run. That loads plug-ins of devices, too, so
    where there is one all of it is loaded.

    Raises:
        UsageError: TensorFlow is not installed; the message has the command.
    """
    _prepare()
    spec = importlib.util.find_spec(_NAME) if _NAME not in sys.modules else None
    if spec is None or _has_plugins():
        import_tensorflow(keras=False)
        return _server_modules()
    os.environ["TF2_BEHAVIOR"] = "1"  # as `tensorflow/__init__.py` has it
    sys.modules[_NAME] = importlib.util.module_from_spec(spec)  # empty, but it knows where its modules are
    try:
        importlib.import_module("tensorflow.python.pywrap_tensorflow")  # before all others: their shared libraries
        importlib.import_module("tensorflow.python.tf2").enable()
        return _server_modules()
    finally:
        del sys.modules[_NAME]  # who needs the whole can import it


def _has_plugins() -> bool:
    return bool(os.environ.get("TF_PLUGGABLE_DEVICE_LIBRARY_PATH") or importlib.util.find_spec("tensorflow-plugins"))


def _server_modules() -> ServerModules:
    names = ("python.training.server_lib", "core.protobuf.config_pb2", "python.framework.errors")
    return ServerModules(*(importlib.import_module(f"{_NAME}.{name}") for name in names))


def _prepare() -> None:
    """Set what TensorFlow reads from the environment at its import."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    limit_threads()
