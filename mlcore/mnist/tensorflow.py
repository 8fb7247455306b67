"""The one place where TensorFlow is imported for MNIST: without Keras, which is a third of its start-up."""

import contextlib
import logging
import os
import sys
from typing import Any

from mlcore.runtime.extras import require

_KERAS = ("keras", "tf_keras")


def _import() -> Any:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # TensorFlow loads Keras at its own import and goes on when it cannot; None in sys.modules says that it cannot.
    # Nothing here uses it, and who does (tf.keras in a notebook) gets it at the first use.
    hidden = [name for name in _KERAS if name not in sys.modules]
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        module = require("tensorflow", extra="tf")
    finally:
        for name in hidden:
            with contextlib.suppress(KeyError):
                del sys.modules[name]
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    return module


tf = _import()


def use_cores(cores: int) -> None:
    """Run operations beside each other, one a core, instead of each on all cores.

    For a batch that is cut into one part a core (see `learner`) this was 1.3 times as fast on two cores: the operations
    are small, and threads that share one wait for each other. The threads stay as they are once TensorFlow has run an
    operation, as in a notebook.
    """
    # It would gather sums into AddN, which adds in the order in which its inputs come: the same seed must give the
    # same numbers.
    tf.config.optimizer.set_experimental_options({"arithmetic_optimization": False})
    with contextlib.suppress(RuntimeError):
        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(cores)
