"""What is trained, and one training step of it.

The step knows nothing of the loop that drives it: `steps_in_graph` runs many of them in one call on one machine, and a
ClusterCoordinator's closures run a few of them on each worker.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from mlcore.data.mnist import Examples
from mlcore.mnist.batches import Batches
from mlcore.mnist.messages import read_together, send_together
from mlcore.mnist.network import Network, scaled
from mlcore.mnist.optimizers import Optimizer, OptimizerName, parts_of
from mlcore.mnist.tensorflow import tf

Schedule = Literal["cosine", "constant"]

_EVALUATION_BATCH = 1000
_LEAST_PART = 32  # examples; a smaller part of a batch costs more than it saves


class Learner(tf.Module):  # type: ignore[misc]
    """A network, its optimiser and the number of steps made. Make it under `strategy.scope()` for a cluster.

    Args:
        network: What is trained.
        optimizer: How.
        learning_rate: At the first step.
        schedule: cosine: the rate falls along half a cosine to 0 at `total_steps`; constant: it stays.
        total_steps: Steps of the whole training.
        parts: Parts into which a batch is cut, each of which can be worked on by a core of its own.
        share: (index, count) of this process among those that train in step, each on its share of every batch.
    """

    def __init__(
        self,
        network: Network,
        optimizer: OptimizerName = "adam",
        *,
        learning_rate: float,
        schedule: Schedule = "constant",
        total_steps: int,
        parts: int = 1,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        super().__init__(name="learner")
        self.network = network
        self.optimizer = Optimizer(optimizer, network.parameters)
        self.step = tf.Variable(
            lambda: tf.constant(0, tf.int64), shape=[], dtype=tf.int64, trainable=False, name="step",
            aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
        )  # fmt: skip
        self.learning_rate, self.schedule, self.total_steps = learning_rate, schedule, total_steps
        self.parts, self.share = parts, share

    def checkpoint(self) -> Any:
        """The state as a tf.train.Checkpoint; the same on one machine and on a cluster."""
        return tf.train.Checkpoint(step=self.step, network=self.network, optimizer=self.optimizer)

    def rate(self, step: Any) -> Any:
        """Learning rate of a step (float32, from 1)."""
        if self.schedule == "constant":
            return tf.constant(self.learning_rate)
        done = tf.minimum((step - 1.0) / self.total_steps, 1.0)
        return self.learning_rate * 0.5 * (1.0 + tf.cos(math.pi * done))

    def train_step(self, imgs_u8: Any, labels: Any) -> Any:
        """One step on a batch, inside a tf.function.

        Args:
            imgs_u8: uint8 of shape (n, rows * columns).
            labels: int32 of shape (n,).

        Returns:
            float32 of shape (3,): sum of the losses, number of right answers, n; of the own share.
        """
        with tf.device(self.step.device):
            number = self.step.assign_add(1)
            step = tf.cast(number, tf.float32)
            rate = self.rate(step)
        parts = read_together(self.optimizer.parts)
        size = tf.shape(labels)[0]
        index, count = self.share
        cuts = [size * (index * self.parts + part) // (count * self.parts) for part in range(self.parts + 1)]
        sums, gradients = [], []
        for begin, end in itertools.pairwise(cuts):
            part_sums, part_gradients = self._gradients(parts, imgs_u8[begin:end], labels[begin:end], size, number)
            sums.append(part_sums)
            gradients.append(part_gradients)
        total = [_sum_in_order(same) for same in zip(*gradients, strict=True)]
        self.optimizer.apply(send_together(total, self.optimizer.parts), step=step, learning_rate=rate)
        return _sum_in_order(sums)

    def _gradients(
        self, parts: Sequence[Any], imgs_u8: Any, labels: Any, size: Any, number: Any
    ) -> tuple[Any, list[Any]]:
        """Sums of a part of a batch, and its share of the gradient of the batch's mean loss."""
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(parts)
            remaining = iter(parts)
            shards = [[next(remaining) for _ in parts_of(variable)] for variable in self.network.parameters]
            parameters = [each[0] if len(each) == 1 else tf.concat(each, axis=0) for each in shards]
            logits = self.network.logits(scaled(imgs_u8), dropout_step=number, parameters=parameters)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)
            loss = tf.reduce_sum(losses) / tf.cast(size, tf.float32)
        gradients = tape.gradient(loss, parts)
        right = tf.equal(tf.argmax(logits, axis=1, output_type=tf.int32), labels)
        count = tf.cast(tf.shape(labels)[0], tf.float32)
        return tf.stack([tf.reduce_sum(losses), tf.reduce_sum(tf.cast(right, tf.float32)), count]), gradients


def _sum_in_order(tensors: Sequence[Any]) -> Any:
    """Their sum, added from left to right; AddN adds in the order in which its inputs come."""
    return functools.reduce(tf.add, tensors)


def parts_for(batch_size: int, cores: int) -> int:
    """Parts into which a batch is best cut: one a core, unless they become too small."""
    return max(1, min(cores, batch_size // _LEAST_PART))


def steps_in_graph(learner: Learner, batches: Batches) -> Callable[[int, int], npt.NDArray[np.float64]]:
    """A function that makes many training steps in one call.

    Returns:
        run(first, steps): trains on the batches first, first + 1, ...; gives the sum of what `train_step` gives.
    """
    return callable_run(lambda first, end: many_steps(learner.train_step, batches, first, end))


def many_steps(step: Callable[[Any, Any], Any], batches: Batches, first: Any, end: Any) -> Any:
    """The sum of what `step` gives for the batches from `first` to before `end`, in a graph."""
    # The next batch depends on its number alone, so it is made ready while this step is still at work.
    return tf.while_loop(
        lambda number, _: number < end,
        lambda number, sums: (number + 1, sums + step(*batches.batch(number))),
        (first, tf.zeros(3)),
    )[1]


def callable_run(run: Callable[[Any, Any], Any]) -> Callable[[int, int], npt.NDArray[np.float64]]:
    """A function of numbers from one of tensors: run(first, end) in a graph gives run_steps(first, steps)."""
    in_graph = tf.function(run, autograph=False)

    def run_steps(first: int, steps: int) -> npt.NDArray[np.float64]:
        sums = in_graph(tf.constant(first, tf.int64), tf.constant(first + steps, tf.int64))
        return sums.numpy().astype(np.float64)

    return run_steps


def evaluator(network: Network, examples: Examples) -> Callable[[], tuple[float, npt.NDArray[np.int64]]]:
    """A function that evaluates a network as it is at each call.

    Returns:
        evaluate(): the mean loss over all examples, and the confusion matrix: [label, answer] -> count.
    """
    classes = int(network.biases[-1].shape[0])

    def count(imgs_u8: Any, labels: Any) -> Any:
        logits = network.logits(scaled(imgs_u8))
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)
        answers = tf.argmax(logits, axis=1, output_type=tf.int32)
        return tf.reduce_sum(losses), tf.math.confusion_matrix(labels, answers, classes, dtype=tf.int64)

    signature = [tf.TensorSpec([None, None], tf.uint8), tf.TensorSpec([None], tf.int32)]
    in_graph = tf.function(count, autograph=False, input_signature=signature)

    chunks = []
    for begin in range(0, len(examples), _EVALUATION_BATCH):
        part = examples[begin : begin + _EVALUATION_BATCH]
        chunks.append((tf.constant(part.imgs.reshape(len(part), -1)), tf.constant(part.labels.astype(np.int32))))

    def evaluate() -> tuple[float, npt.NDArray[np.int64]]:
        counted = [in_graph(*chunk) for chunk in chunks]
        loss = sum(float(loss) for loss, _ in counted) / len(examples)
        return loss, np.sum([matrix.numpy() for _, matrix in counted], axis=0)

    return evaluate
