"""TensorFlow for MNIST: without Keras, which nothing here uses."""

import contextlib

from mlcore.cluster.tensorflow import import_tensorflow

tf = import_tensorflow(keras=False)


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
