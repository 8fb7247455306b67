"""Small models, published in a second each: a digit classifier as `mnist-train` exports it, a detector with the
signatures of `export`, and one that takes as long as its input says."""

import io
import os
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

DIGITS = tuple(str(digit) for digit in range(10))


def publish_classifier(base: Path, seed: int) -> int:
    """The next version of a classifier of 28x28 pictures, untrained; its answers depend on the seed."""
    from mlcore.mnist.export import publish
    from mlcore.mnist.network import Network

    samples = np.random.default_rng(0).integers(0, 255, (4, 28, 28), np.uint8)
    version, _ = publish(
        Network((28, 28), (256, 64), 10, seed=seed), base, classes=DIGITS, parameters={"seed": seed},
        data_version="none", metrics={"accuracy": 0.1}, samples=samples,
    )  # fmt: skip
    return version


def publish_detector(base: Path) -> None:
    """Version 1 of a model with the signatures of a detector: one box, whose score is the picture's mean."""
    from mlcore.mnist.tensorflow import tf

    def detect(pictures):
        means = tf.reduce_mean(tf.cast(pictures, tf.float32), [1, 2, 3]) / 255.0
        count = tf.shape(means)[0]
        return {
            "detection_boxes": tf.tile(tf.constant([[[0.1, 0.2, 0.5, 0.6]]]), [count, 1, 1]),
            "detection_scores": means[:, tf.newaxis],
            "detection_classes": tf.ones([count, 1]),
            "num_detections": tf.ones([count]),
        }

    def decode(encoded):
        picture = tf.io.decode_image(encoded, channels=3, expand_animations=False)
        picture.set_shape([None, None, 3])
        return tf.cast(tf.round(tf.image.resize(picture, [32, 32])), tf.uint8)

    class Detector(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8, "inputs")])
        def image_tensor(self, inputs):
            return detect(inputs)

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "inputs")])
        def image_bytes(self, inputs):
            return detect(tf.map_fn(decode, inputs, fn_output_signature=tf.TensorSpec([32, 32, 3], tf.uint8)))

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "inputs")])
        def tf_example(self, inputs):
            features = tf.io.parse_example(inputs, {"image/encoded": tf.io.FixedLenFeature((), tf.string)})
            return self.image_bytes(features["image/encoded"])

    model = Detector()
    _save(model, base, 1, {"serving_default": model.image_tensor, "image_bytes": model.image_bytes,
                           "tf_example": model.tf_example})  # fmt: skip


def publish_slow(base: Path) -> None:
    """Version 1 of a model that works for `milliseconds` (about) of its one example, and gives it back."""
    from mlcore.mnist.tensorflow import tf

    class Slow(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, 1], tf.float32, "milliseconds")])
        def wait(self, milliseconds):
            end = tf.timestamp() + tf.cast(tf.reduce_sum(milliseconds), tf.float64) / 1000.0
            matrix = tf.random.uniform([64, 64])
            _, done = tf.while_loop(
                lambda _, __: tf.timestamp() < end,
                lambda value, count: (tf.linalg.l2_normalize(value @ value), count + 1),
                (matrix, tf.constant(0)),
            )
            return {"milliseconds": milliseconds + 0.0 * tf.cast(done, tf.float32)}

    model = Slow()
    _save(model, base, 1, {"serving_default": model.wait})


def _save(model, base: Path, version: int, signatures) -> None:
    from mlcore.mnist.tensorflow import tf

    staging = base / f".{version}"
    tf.saved_model.save(model, str(staging), signatures=signatures)
    staging.rename(base / str(version))


def copy_version(source: Path, base: Path, version: int) -> Path:
    """Publish a version that is there already once more, by one rename."""
    base.mkdir(parents=True, exist_ok=True)
    staging = base / f".copy-{version}-{os.getpid()}"
    shutil.copytree(source, staging)
    return staging.rename(base / str(version))


def jpeg(width: int = 40, height: int = 30, grey: int = 255) -> bytes:
    """An encoded picture of one grey."""
    file = io.BytesIO()
    Image.new("RGB", (width, height), (grey, grey, grey)).save(file, "JPEG", quality=95)
    return file.getvalue()
