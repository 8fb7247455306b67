"""Checkpoints that can be saved while a worker is stopped.

Where variables are on several tasks, TensorFlow traces a function anew for each save and sends it to every task of the
cluster first, to workers too, although only parameter servers write. A worker that does not answer would hang the save
for ever, and reading hundreds of variables one by one before it takes seconds. Traced once, a save is one call, which
concerns the parameter servers alone.
"""

import logging
import time
from pathlib import Path
from typing import Any

from mlcore.cluster.strategy import import_tensorflow

log = logging.getLogger(__name__)


def trace_saving(checkpoint: Any) -> None:
    """Make a tf.train.Checkpoint write by one function, traced at its first save; the objects in it may not change.

    A CheckpointManager that has the checkpoint uses it too.
    """
    tf = import_tensorflow()
    write = checkpoint._write
    _ = checkpoint.save_counter  # belongs to the objects, and would be made at the first save
    traced: list[Any] = []

    def write_traced(file_prefix: Any, options: Any = None) -> str:
        prefix = str(file_prefix)
        Path(prefix).parent.mkdir(parents=True, exist_ok=True)
        if not traced:
            started = time.monotonic()
            function = tf.function(lambda path: write(path), autograph=False)  # noqa: PLW0108 - write has defaults
            traced.append(function.get_concrete_function(tf.TensorSpec([], tf.string)))
            log.debug("saving traced in %.1f s", time.monotonic() - started)
        traced[0](tf.constant(prefix))
        for callback in getattr(options, "experimental_write_callbacks", None) or ():
            callback(prefix)
        return prefix

    checkpoint._write = write_traced
