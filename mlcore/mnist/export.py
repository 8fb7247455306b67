"""A trained network as a numbered SavedModel that TensorFlow Serving and KServe load.

imgs           float32 (n, rows, columns, 1), 0 black to 1 white      n may be anything, 0 too
probabilities  float32 (n, classes)
logits         float32 (n, classes)
class_ids      int64 (n,)
classes        string (n,)
"""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mlcore import __version__
from mlcore.data.idx import Array
from mlcore.mnist.network import Network
from mlcore.mnist.tensorflow import tf
from mlcore.serving.version_directory import VersionDirectory, write_card

log = logging.getLogger(__name__)

SIGNATURE = "serving_default"
_TOLERANCE = 1e-5


class Served(tf.Module):  # type: ignore[misc]
    """What is exported: the network behind the inputs and outputs that clients see."""

    def __init__(self, network: Network, classes: Sequence[str]) -> None:
        super().__init__(name="served")
        self.network = network
        rows, columns = network.image_shape
        self._names = tuple(classes)
        self.predict = tf.function(
            self._predict,
            autograph=False,
            input_signature=[tf.TensorSpec([None, rows, columns, 1], tf.float32, name="imgs")],
        )

    def _predict(self, imgs: Any) -> dict[str, Any]:
        rows, columns = self.network.image_shape
        logits = self.network.logits(tf.reshape(imgs, [-1, rows * columns]))
        class_ids = tf.argmax(logits, axis=1, output_type=tf.int64)
        return {
            "probabilities": tf.nn.softmax(logits),
            "logits": logits,
            "class_ids": class_ids,
            "classes": tf.gather(tf.constant(self._names), class_ids),
        }


def weights_digest(network: Network) -> str:
    """SHA-256 over the values of all weights and biases."""
    digest = hashlib.sha256()
    for variable in (*network.weights, *network.biases):
        digest.update(np.ascontiguousarray(tf.convert_to_tensor(variable).numpy()).data)
    return digest.hexdigest()


def publish(
    network: Network,
    export_dir: Path,
    *,
    classes: Sequence[str],
    parameters: Mapping[str, Any],
    data_version: str,
    metrics: Mapping[str, float | int],
    samples: Array,
) -> tuple[int, Path]:
    """Export a network as the next version. The version appears after it was loaded again and gave the same answers.

    Args:
        network: What is exported.
        export_dir: Directory of the versions.
        classes: Names of the classes.
        parameters: What it was trained with, for the record.
        data_version: What it was trained on.
        metrics: What it reached.
        samples: Images, uint8 (n, rows, columns), that the exported model must answer as the network does.

    Returns:
        The version and its directory. One that holds the same weights already is not made again.
    """
    weights = weights_digest(network)
    output = VersionDirectory(
        export_dir, step="mnist-train", parameters=parameters, inputs={"data": data_version, "weights": weights},
        flag="--export-dir",
    )  # fmt: skip
    if output.existing() is None:
        output.results = {"weights_sha256": weights, **metrics}
        with output.writing() as directory:
            served = Served(network, classes)
            tf.saved_model.save(served, str(directory), signatures={SIGNATURE: served.predict})
            _check(directory, network, classes, samples)
            write_card(directory, _card(network, classes, parameters, data_version, metrics))
        log.info("exported %s", output.path)
    assert output.version is not None
    return output.version, output.path


def _card(
    network: Network,
    classes: Sequence[str],
    parameters: Mapping[str, Any],
    data_version: str,
    metrics: Mapping[str, float | int],
) -> dict[str, Any]:
    rows, columns = network.image_shape
    return {
        "task": "classification",
        "signatures": {
            SIGNATURE: {
                "inputs": {"imgs": {"dtype": "float32", "shape": [None, rows, columns, 1], "range": [0.0, 1.0]}},
                "outputs": {
                    "probabilities": {"dtype": "float32", "shape": [None, len(classes)]},
                    "logits": {"dtype": "float32", "shape": [None, len(classes)]},
                    "class_ids": {"dtype": "int64", "shape": [None]},
                    "classes": {"dtype": "string", "shape": [None]},
                },
            }
        },
        "classes": {str(number): name for number, name in enumerate(classes)},
        "training_data": {"version": data_version},
        "metrics": dict(metrics),
        "weights": sum(int(np.prod(variable.shape)) for variable in (*network.weights, *network.biases)),
        "parameters": dict(parameters),
        "versions": {"mlcore": __version__, "tensorflow": tf.__version__, "numpy": np.__version__},
    }


def _check(directory: Path, network: Network, classes: Sequence[str], samples: Array) -> None:
    """Load the SavedModel again and compare its answers with the network's, for no, one and many images."""
    loaded = tf.saved_model.load(str(directory))
    predict = loaded.signatures[SIGNATURE]
    imgs = samples[..., None].astype(np.float32) / 255.0
    flat = imgs.reshape(len(imgs), -1)
    for count in (0, 1, len(imgs)):
        outputs = {name: value.numpy() for name, value in predict(imgs=tf.constant(imgs[:count])).items()}
        expected = network.logits(tf.constant(flat[:count])).numpy()
        if not np.allclose(outputs["logits"], expected, rtol=_TOLERANCE, atol=_TOLERANCE):
            worst = float(np.abs(outputs["logits"] - expected).max())
            raise RuntimeError(f"{directory}: the exported model's logits differ by {worst:g} from the network's")
        names = [classes[index].encode() for index in outputs["class_ids"]]
        if outputs["classes"].tolist() != names or outputs["probabilities"].shape != expected.shape:
            raise RuntimeError(f"{directory}: the exported model's outputs do not fit each other")
