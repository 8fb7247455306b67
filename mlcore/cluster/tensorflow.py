"""The one place where TensorFlow is imported."""

import contextlib
import logging
import os
import sys
from typing import Any

from mlcore.runtime.extras import require

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
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # TensorFlow loads Keras at its import and goes on when it cannot; None in sys.modules says that it cannot.
    hidden = () if keras else tuple(name for name in _KERAS if name not in sys.modules)
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        tensorflow = require("tensorflow", extra=extra)
    finally:
        for name in hidden:
            with contextlib.suppress(KeyError):
                del sys.modules[name]
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    return tensorflow
