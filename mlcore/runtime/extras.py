"""Packages that a plain install does not have."""

import importlib
from types import ModuleType

from mlcore.runtime.errors import UsageError


def require(module: str, extra: str) -> ModuleType:
    """Import `module`, which the extra `extra` of mlcore brings.

    Raises:
        UsageError: The package is not installed; the message has the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = (error.name or module).partition(".")[0]
        if missing == "mlcore":
            raise
        raise UsageError(f"{missing} is not installed: pip install 'mlcore[{extra}]'") from error
