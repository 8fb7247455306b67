"""The input pipeline, in the graph: batch number n of a shuffled set, as a pure function of n.

Nothing is kept between batches, so training can stop after any of them and go on as if it had not, several steps run in
one call, and a worker of a cluster can shuffle by a seed of its own. Each epoch is a permutation of its own; its last
batch is smaller where the size does not divide, and no example is left out.
"""

from typing import Any

from mlcore.data.mnist import Examples
from mlcore.mnist.tensorflow import tf


class Batches:
    """Examples that are held in memory, in batches.

    Args:
        examples: What to go through.
        batch_size: Examples a batch.
        seed: Of the order.
    """

    def __init__(self, examples: Examples, batch_size: int, seed: int) -> None:
        self.count = len(examples)
        self.batch_size = min(batch_size, self.count)
        self.per_epoch = -(-self.count // self.batch_size)
        self.seed = seed
        # Bytes, not floats: a quarter of the memory, and converting a batch costs little beside training on it.
        self._imgs = tf.constant(examples.imgs.reshape(self.count, -1))
        self._labels = tf.constant(examples.labels.astype("int32"))

    def batch(self, number: Any) -> tuple[Any, Any]:
        """Images (uint8, (n, rows * columns)) and labels (int32, (n,)) of a batch by its number (int64, from 0)."""
        epoch, within = number // self.per_epoch, number % self.per_epoch
        begin = within * self.batch_size
        positions = tf.range(begin, tf.minimum(begin + self.batch_size, self.count))
        seed = tf.stack([tf.constant(self.seed, tf.int64), epoch])
        chosen = tf.random.experimental.index_shuffle(
            positions, seed=seed, max_index=tf.constant(self.count - 1, tf.int64)
        )
        return tf.gather(self._imgs, chosen), tf.gather(self._labels, chosen)
