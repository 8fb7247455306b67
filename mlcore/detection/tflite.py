"""RetinaNet as a TFLite model of built-in operations alone, for phones and boards.

    images             uint8 [1, height, width, 3]: a picture resized to fit, and padded on the right and at the bottom
                       to the model's size with the colour (124, 116, 104), which is 0 after the model's normalisation
                       as it was in training; black lets it find other boxes near the edge
    detection_boxes    float32 [1, k, 4], [ymin, xmin, ymax, xmax] in 0..1 of the padded picture
    detection_scores   float32 [1, k]
    detection_classes  float32 [1, k], ids of the label map
    num_detections     float32 [1]

The models with a second stage gather regions in ways that TFLite has no operations for.
"""

import logging
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mlcore.detection.detectors import OUTPUTS, detections_of
from mlcore.detection.metrics import Detections
from mlcore.detection.signatures import ServingFunctions, anchor_boxes
from mlcore.detection.tensorflow import import_tensorflow
from mlcore.detection.verification import Selection, check
from mlcore.serving.version_directory import EXTRA

log = logging.getLogger(__name__)

TFLITE = "model.tflite"
PADDING = (124, 116, 104)  # the mean colour of official.vision's normalisation, in whole numbers
_CANDIDATES = 1000  # best scores that suppression looks at
_LEAST_AGREEMENT = 0.9  # its pixels are rounded to 8 bits after they were resized: 98 % were seen to agree


def write_tflite(
    directory: Path,
    *,
    model: Any,
    config: Any,
    functions: ServingFunctions,
    pictures: Sequence[bytes],
    expected: Sequence[Detections],
) -> None:
    """Write `assets.extra/model.tflite`, after comparing it with the checkpoint's detections.

    Args:
        directory: Of the version.
        model: RetinaNet of official.vision, built and restored.
        config: Its configuration.
        functions: Its serving functions.
        pictures: Encoded pictures to compare on.
        expected: The checkpoint's detections in them.

    Raises:
        DataError: The TFLite model does not find what the checkpoint finds.
    """
    tf = import_tensorflow()
    function = _detect_function(model, config.task.model, functions.input_size)
    with tempfile.TemporaryDirectory(dir=directory, prefix=".tflite-") as folder:
        module = tf.Module()
        module.model_variables = list(model.variables)
        tf.saved_model.save(module, folder, signatures={"serving_default": function.get_concrete_function()})
        content = tf.lite.TFLiteConverter.from_saved_model(folder).convert()
    found = [_run(content, functions, picture) for picture in pictures]
    check(expected, {TFLITE: found}, least_agreement=_LEAST_AGREEMENT, selection=Selection.of(config.task))
    (directory / EXTRA / TFLITE).write_bytes(content)


def _detect_function(model: Any, model_config: Any, size: tuple[int, int]) -> Any:
    tf = import_tensorflow()
    from official.vision.ops import box_ops, preprocess_ops

    options = model_config.detection_generator
    classes = model_config.num_classes - 1  # without the background
    levels = [str(level) for level in range(model_config.min_level, model_config.max_level + 1)]
    boxes_by_level = anchor_boxes(model_config, size)
    anchors = tf.concat([tf.reshape(boxes_by_level[level], [-1, 4]) for level in levels], axis=0)
    extent = tf.constant([*size, *size], tf.float32)

    @tf.function(input_signature=[tf.TensorSpec([1, *size, 3], tf.uint8, "images")], autograph=False)  # type: ignore[untyped-decorator]
    def detect(images: Any) -> dict[str, Any]:
        normalised = preprocess_ops.normalize_image(
            tf.cast(images, tf.float32), offset=preprocess_ops.MEAN_RGB, scale=preprocess_ops.STDDEV_RGB
        )
        features = model.backbone(normalised, training=False)
        if model.decoder is not None:
            features = model.decoder(features, training=False)
        scores, boxes, _ = model.head(features, training=False)
        logits = tf.concat([tf.reshape(scores[level], [-1, classes + 1]) for level in levels], axis=0)
        codes = tf.concat([tf.reshape(boxes[level], [-1, 4]) for level in levels], axis=0)
        decoded = box_ops.decode_boxes(tf.cast(codes, tf.float32), anchors, weights=options.box_coder_weights)
        decoded = tf.clip_by_value(decoded / extent, 0.0, 1.0)
        # Every pair of a box and a class; classes are moved apart, so that one suppression does for all of them.
        flat = tf.reshape(tf.sigmoid(tf.cast(logits[:, 1:], tf.float32)), [-1])
        best, pairs = tf.math.top_k(flat, k=min(_CANDIDATES, int(flat.shape[0])))
        labels = tf.cast(pairs % classes, tf.float32)
        candidates = tf.gather(decoded, pairs // classes)
        chosen, count = tf.raw_ops.NonMaxSuppressionV4(
            boxes=candidates + 2.0 * labels[:, tf.newaxis],
            scores=best,
            max_output_size=options.max_num_detections,
            iou_threshold=options.nms_iou_threshold,
            score_threshold=options.pre_nms_score_threshold,
            pad_to_max_output_size=True,
        )
        return {
            "detection_boxes": tf.gather(candidates, chosen)[tf.newaxis],
            "detection_scores": tf.gather(best, chosen)[tf.newaxis],
            "detection_classes": tf.gather(labels, chosen)[tf.newaxis] + 1.0,
            "num_detections": tf.cast(count, tf.float32)[tf.newaxis],
        }

    return detect


def _run(content: bytes, functions: ServingFunctions, picture: bytes) -> Detections:
    """What the TFLite model finds in a picture, in 0..1 of the picture itself."""
    tf = import_tensorflow()
    with warnings.catch_warnings():  # it is to move into a package of its own, which does not concern users here
        warnings.filterwarnings("ignore", message=r"\s*Warning: tf.lite.Interpreter is deprecated")
        runner = tf.lite.Interpreter(model_content=content).get_signature_runner()
    pixels = tf.io.decode_image(picture, channels=3, expand_animations=False)
    _, content_size = functions.prepare(pixels)
    height, width = (int(side) for side in content_size)
    resized = tf.cast(tf.round(tf.image.resize(pixels, (height, width))), tf.uint8)
    framed = np.empty((*functions.input_size, 3), np.uint8)
    framed[:] = PADDING
    framed[:height, :width] = resized.numpy()
    outputs = runner(images=framed[np.newaxis])
    found = detections_of({name: np.asarray(outputs[name]) for name in OUTPUTS}, 0)
    scale = np.array([functions.input_size[0] / height, functions.input_size[1] / width] * 2, np.float32)
    return replace(found, boxes_yxyx=np.clip(found.boxes_yxyx * scale, 0.0, 1.0))
