"""The functions of an exported detector: pictures in, detections of the Object Detection API out.

    image_tensor  uint8 [n, height, width, 3], pictures of one size
    image_bytes   string [n], encoded JPEG, PNG, GIF or BMP of any sizes
    tf_example    string [n], serialised tf.train.Example with image/encoded

    detection_boxes    float32 [n, k, 4], [ymin, xmin, ymax, xmax] in 0..1 of the picture's own size
    detection_scores   float32 [n, k], the best first
    detection_classes  float32 [n, k], ids of the label map
    num_detections     float32 [n], how many of the k entries are detections
    detection_masks    float32 [n, k, h, w], probabilities within each box, where the model has masks

All three prepare pictures and then call one and the same traced function, and training's validation, `evaluate` and
`export` all go through them, so a checkpoint and its export give the same numbers.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mlcore.detection.detectors import MASKS, OUTPUTS
from mlcore.detection.tensorflow import import_tensorflow

log = logging.getLogger(__name__)

TF_EXAMPLE = "tf_example"
DEFAULT_SIGNATURE = "serving_default"  # image_tensor, under the name that TensorFlow Serving takes by default
INPUT_NAME = "inputs"

Tensors = Mapping[str, Any]


@dataclass(frozen=True)
class ServingFunctions:
    """The functions of a model, each traced once, for any number of pictures.

    Attributes:
        image_tensor: tf.function of pictures of one size.
        image_bytes: tf.function of encoded pictures.
        tf_example: tf.function of serialised tf.train.Example.
        detect: tf.function of prepared pictures, which the other three call.
        prepare: Pictures of one size -> prepared pictures, and the (height, width) that their content takes.
        input_size: (height, width) of prepared pictures.
        has_masks: Whether detection_masks is among the outputs.
    """

    image_tensor: Any
    image_bytes: Any
    tf_example: Any
    detect: Any
    prepare: Callable[[Any], tuple[Any, Any]]
    input_size: tuple[int, int]
    has_masks: bool


def serving_functions(model: Any, task_config: Any) -> ServingFunctions:
    """The functions of a model as it is; its variables are read at each call, so weights may change between calls.

    Args:
        model: RetinaNet or Mask R-CNN of official.vision, built.
        task_config: The task's section of its configuration (`config.task`).
    """
    tf = import_tensorflow()
    from official.vision.ops import preprocess_ops

    model_config = task_config.model
    parser = task_config.train_data.parser
    size = (int(model_config.input_size[0]), int(model_config.input_size[1]))
    padded = tuple(preprocess_ops.compute_padded_size(size, 2**model_config.max_level)) if parser.pad else size
    padded = (int(padded[0]), int(padded[1]))
    anchors = anchor_boxes(model_config, padded)
    has_masks = bool(getattr(model_config, "include_mask", False))

    def prepare(images: Any) -> tuple[Any, Any]:
        """As official's `resize_and_crop_image`, which training used, but resized before the normalisation.

        Both are linear, so the result is the same but for rounding, and a large picture costs a fraction.
        """
        original = tf.cast(tf.shape(images)[-3:-1], tf.float32)
        content = tf.constant(size, tf.float32)
        if parser.keep_aspect_ratio:
            content = tf.round(original * tf.reduce_min(content / original))
        content = tf.maximum(content, 1.0)
        resized = tf.image.resize(images, tf.cast(content, tf.int32), method=tf.image.ResizeMethod.BILINEAR)
        normalised = preprocess_ops.normalize_image(
            resized, offset=preprocess_ops.MEAN_RGB, scale=preprocess_ops.STDDEV_RGB
        )
        framed = tf.image.pad_to_bounding_box(normalised, 0, 0, *padded)
        return tf.ensure_shape(framed, [*images.shape[:-3], *padded, 3]), content

    specs = (tf.TensorSpec([None, *padded, 3], tf.float32, "images"), tf.TensorSpec([None, 2], tf.float32, "content"))

    @tf.function(input_signature=specs, autograph=False)  # type: ignore[untyped-decorator]
    def detect(images: Any, content: Any) -> Tensors:
        asked = tf.shape(images)[0]
        missing = tf.maximum(1 - asked, 0)  # kernels of convolutions fail on no picture at all: give them one
        images = tf.pad(images, [[0, missing], [0, 0], [0, 0], [0, 0]])
        content = tf.pad(content, [[0, missing], [0, 0]], constant_values=1.0)
        count = asked + missing
        with _fast_suppression(model):
            found = model.call(
                images,
                image_shape=content,
                anchor_boxes={level: tf.tile(boxes[tf.newaxis], [count, 1, 1, 1]) for level, boxes in anchors.items()},
                training=False,
            )
        extent = tf.tile(content, [1, 2])[:, tf.newaxis, :]
        outputs = {
            "detection_boxes": tf.clip_by_value(tf.cast(found["detection_boxes"], tf.float32) / extent, 0.0, 1.0)
        }
        for name in (*OUTPUTS[1:], *((MASKS,) if has_masks else ())):
            outputs[name] = tf.cast(found[name], tf.float32)
        return {name: output[:asked] for name, output in outputs.items()}

    def decode(encoded: Any) -> Any:
        image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
        image.set_shape([None, None, 3])
        return prepare(image)

    def detect_encoded(encoded: Any) -> Tensors:
        prepared = (tf.TensorSpec([*padded, 3], tf.float32), tf.TensorSpec([2], tf.float32))
        with tf.device("cpu:0"):
            images, content = tf.map_fn(decode, encoded, fn_output_signature=prepared, parallel_iterations=32)
        return detect(images, content)

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8, INPUT_NAME)], autograph=False)  # type: ignore[untyped-decorator]
    def image_tensor(inputs: Any) -> Tensors:
        images, content = prepare(inputs)
        return detect(images, tf.tile(content[tf.newaxis], [tf.shape(inputs)[0], 1]))

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, INPUT_NAME)], autograph=False)  # type: ignore[untyped-decorator]
    def image_bytes(inputs: Any) -> Tensors:
        return detect_encoded(inputs)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, INPUT_NAME)], autograph=False)  # type: ignore[untyped-decorator]
    def tf_example(inputs: Any) -> Tensors:
        features = tf.io.parse_example(inputs, {"image/encoded": tf.io.FixedLenFeature((), tf.string)})
        return detect_encoded(features["image/encoded"])

    return ServingFunctions(image_tensor, image_bytes, tf_example, detect, prepare, padded, has_masks)


def anchor_boxes(model_config: Any, padded: tuple[int, int]) -> dict[str, Any]:
    """Level -> anchors [height, width, 4 * anchors a place], in pixels of a prepared picture."""
    from official.vision.ops import anchor

    generator = anchor.build_anchor_generator(
        min_level=model_config.min_level,
        max_level=model_config.max_level,
        num_scales=model_config.anchor.num_scales,
        aspect_ratios=model_config.anchor.aspect_ratios,
        anchor_size=model_config.anchor.anchor_size,
    )
    return dict(generator(image_size=padded))


@contextlib.contextmanager
def _fast_suppression(model: Any) -> Iterator[None]:
    """Trace non-maximum suppression as the one kernel that TensorFlow has for it.

    Official's default, v2, is a loop of tensor operations for each class made for TPUs: more than half of the time of
    a small RetinaNet on a CPU. v1 is unrolled over a fixed number of pictures, which an export does not have. The
    kernel takes float32 alone, so a model in mixed precision keeps v2.
    """
    options = model.detection_generator.get_config()  # the dictionary itself, which `call` reads
    before = options["nms_version"]
    agnostic = options.get("use_class_agnostic_nms")
    if options.get("soft_nms_sigma") is not None and before == "v1":
        log.warning("soft non-maximum suppression needs a fixed number of pictures; the plain one is used instead")
    if model.compute_dtype != "float32" or agnostic:
        options["nms_version"] = "v2"
    elif before != "v3":
        options["nms_version"] = "batched"
    try:
        yield
    finally:
        options["nms_version"] = before
