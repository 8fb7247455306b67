"""The network: dense layers with ReLU between them, in plain TensorFlow."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

from mlcore.mnist.tensorflow import tf


class Network(tf.Module):  # type: ignore[misc]
    """A fully connected classifier of grey images.

    Its variables are made where it is made: under `strategy.scope()` they are the strategy's. Their first values depend
    on the seed alone.

    Args:
        image_shape: (rows, columns).
        hidden: Units of each hidden layer.
        classes: Number of classes.
        dropout: Share of the units of each hidden layer that a training step leaves out.
        seed: Of the first values and of dropout.
    """

    def __init__(
        self, image_shape: tuple[int, int], hidden: Sequence[int], classes: int, *, dropout: float = 0.0, seed: int = 0
    ) -> None:
        super().__init__(name="network")
        self.image_shape = image_shape
        self.dropout = dropout
        self.seed = seed
        sizes = [math.prod(image_shape), *hidden, classes]
        self.weights = []
        self.biases = []
        for layer, shape in enumerate(itertools.pairwise(sizes)):
            self.weights.append(_glorot_uniform(f"weights_{layer}", shape, seed=[seed, layer]))
            self.biases.append(_zeros(f"biases_{layer}", shape[1:]))

    @property
    def parameters(self) -> list[Any]:
        """Its variables: the weights of each layer, then the biases."""
        return [*self.weights, *self.biases]

    def logits(self, pixels: Any, *, dropout_step: Any = None, parameters: Sequence[Any] | None = None) -> Any:
        """Logits of shape (n, classes) for pixels of shape (n, rows * columns) in 0..1.

        Args:
            pixels: float32.
            dropout_step: Number of the training step, from which the dropped units follow; None: nothing is dropped.
            parameters: Values of its variables, where they were read before.
        """
        last = len(self.weights) - 1
        parameters = self.parameters if parameters is None else parameters
        values = pixels
        for layer, (weights, biases) in enumerate(zip(parameters[: last + 1], parameters[last + 1 :], strict=True)):
            values = tf.nn.bias_add(tf.matmul(values, weights), biases)
            if layer < last:
                values = tf.nn.relu(values)
                if self.dropout and dropout_step is not None:
                    seed = tf.stack([tf.constant(self.seed * 1009 + layer, tf.int64), dropout_step])
                    values = tf.nn.experimental.stateless_dropout(values, rate=self.dropout, seed=seed)
        return values


def scaled(imgs_u8: Any) -> Any:
    """Pixels of shape (n, rows * columns) in 0..1 from bytes, as training sees them."""
    return tf.cast(imgs_u8, tf.float32) * (1.0 / 255.0)


def _glorot_uniform(name: str, shape: tuple[int, int], seed: Sequence[int]) -> Any:
    limit = math.sqrt(6.0 / sum(shape))
    return tf.Variable(
        lambda: tf.random.stateless_uniform(shape, seed, -limit, limit), shape=shape, dtype=tf.float32, name=name
    )


def _zeros(name: str, shape: Sequence[int]) -> Any:
    return tf.Variable(lambda: tf.zeros(shape), shape=shape, dtype=tf.float32, name=name)
