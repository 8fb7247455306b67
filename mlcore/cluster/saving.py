"""Checkpoints that the chief can save alone: while a worker is stopped, and without the others of a team.

Where variables are on several tasks, TensorFlow traces a function anew for each save and sends it to every task of the
cluster first, to workers too, although only parameter servers write. A worker that does not answer would hang the save
for ever, and reading hundreds of variables one by one before it takes seconds. Traced once, a save is one call, which
concerns the parameter servers alone.
"""

import logging
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mlcore.cluster.tensorflow import import_tensorflow

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


def save_own_values(variables: Iterable[Any]) -> None:
    """Make the chief save its own batch statistics, where members that train in step have each their own.

    TensorFlow would save the mean of all, for which all have to save at once, one round trip for each variable.
    Statistics that are synchronised are the same everywhere; else the chief's are as good as any member's.

    Args:
        variables: Variables made in the scope of a MultiWorkerMirroredStrategy.
    """
    tf = import_tensorflow()
    for variable in variables:
        if getattr(variable, "synchronization", None) == tf.VariableSynchronization.ON_READ:
            variable._aggregation = tf.VariableAggregation.ONLY_FIRST_REPLICA
