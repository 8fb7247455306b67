"""Small SavedModels whose answers are known, made with plain TensorFlow in a second, and pictures and data for them."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CLASSES = 10
SIDE = 28
RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def block_images(labels: np.ndarray, seed: int = 0) -> np.ndarray:
    """Pictures of MNIST's size with a bright block whose place is the label: uint8 (n, 28, 28)."""
    generator = np.random.default_rng(seed)
    imgs = generator.integers(0, 60, (len(labels), SIDE, SIDE)).astype(np.uint8)
    for img, label in zip(imgs, labels, strict=True):
        row, column = divmod(int(label), 5)
        img[4 + 12 * row : 12 + 12 * row, 2 + 5 * column : 6 + 5 * column] = generator.integers(180, 256)
    return imgs


def save_block_data(folder: Path, count: int = 200) -> Path:
    """Arrays as `mnist-download` stores them."""
    for part, seed in (("train", 1), ("t10k", 2)):
        labels = (np.arange(count) % CLASSES).astype(np.uint8)
        (folder / part).mkdir(parents=True)
        np.savez(folder / part / "imgs.npz", imgs=block_images(labels, seed))
        np.savez(folder / part / "labels.npz", labels=labels)
    return folder


def block_probabilities(imgs: np.ndarray) -> np.ndarray:
    """What the block classifier answers, in numpy: float32 (n, 28, 28, 1) in 0..1 -> float32 (n, 10)."""
    means = np.stack(
        [
            imgs[:, 4 + 12 * (k // 5) : 12 + 12 * (k // 5), 2 + 5 * (k % 5) : 6 + 5 * (k % 5), 0].mean(axis=(1, 2))
            for k in range(CLASSES)
        ],
        axis=1,
    )
    exps = np.exp(10 * (means - means.max(axis=1, keepdims=True)))
    return (exps / exps.sum(axis=1, keepdims=True)).astype(np.float32)


def save_classifier(directory: Path, *, wrong: bool = False) -> Path:
    """A SavedModel with the inputs and outputs of `mnist-train`'s; if wrong, its classes are off by one."""
    os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
    import tensorflow as tf

    def predict(imgs):
        blocks = [
            imgs[:, 4 + 12 * (k // 5) : 12 + 12 * (k // 5), 2 + 5 * (k % 5) : 6 + 5 * (k % 5), 0]
            for k in range(CLASSES)
        ]
        logits = 10.0 * tf.stack([tf.reduce_mean(block, axis=[1, 2]) for block in blocks], axis=1)
        if wrong:
            logits = tf.roll(logits, 1, axis=1)
        class_ids = tf.argmax(logits, axis=1)
        names = tf.constant([f"block {k}" for k in range(CLASSES)])
        return {
            "probabilities": tf.nn.softmax(logits), "logits": logits, "class_ids": class_ids,
            "classes": tf.gather(names, class_ids),
        }  # fmt: skip

    module = tf.Module()
    module.predict = tf.function(predict, input_signature=[tf.TensorSpec([None, SIDE, SIDE, 1], tf.float32, "imgs")])
    tf.saved_model.save(module, str(directory), signatures={"serving_default": module.predict})
    return directory


def save_echo(directory: Path) -> Path:
    """A SavedModel that gives back what it takes, of every type."""
    import tensorflow as tf

    types = {
        name: tf.dtypes.as_dtype(name)
        for name in ("float32", "float64", "float16", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32",
                     "uint64", "bool", "string", "complex64")
    }  # fmt: skip

    @tf.function(input_signature=[{name: tf.TensorSpec(None, kind, name) for name, kind in types.items()}])
    def echo(values):
        return {f"{name}_out": tf.identity(value) for name, value in values.items()}

    module = tf.Module()
    module.echo = echo
    tf.saved_model.save(module, str(directory), signatures={"serving_default": module.echo})
    return directory


def save_detector(
    directory: Path,
    *,
    batch: int | None = None,
    encoded: bool = True,
    masks: bool = False,
    output: str = "num_detections",
) -> Path:
    """A SavedModel with the outputs of an exported detector: classes 1, 2, 3 are red, green and blue."""
    os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
    import tensorflow as tf

    def detect(images: Any) -> dict[str, Any]:
        values = tf.cast(images, tf.float32)
        height, width = (tf.cast(tf.shape(images)[axis], tf.float32) for axis in (1, 2))
        others = tf.reduce_sum(values, axis=-1, keepdims=True) - values
        pure = tf.transpose((values > 180) & (others < 90), [0, 3, 1, 2])  # batch, class, row, column
        rows, columns = tf.cast(tf.reduce_any(pure, 3), tf.int32), tf.cast(tf.reduce_any(pure, 2), tf.int32)

        def extent(line: Any, length: Any) -> tuple[Any, Any]:
            first = tf.cast(tf.argmax(line, axis=2), tf.float32)
            last = length - tf.cast(tf.argmax(tf.reverse(line, [2]), axis=2), tf.float32)
            return first / length, last / length

        (ymin, ymax), (xmin, xmax) = extent(rows, height), extent(columns, width)
        here = tf.cast(tf.reduce_any(pure, [2, 3]), tf.float32)
        scores = here * tf.constant([0.9, 0.6, 0.3])
        order = tf.argsort(scores, axis=1, direction="DESCENDING", stable=True)
        boxes = tf.stack([ymin, xmin, ymax, xmax], axis=2)
        found = {
            "detection_boxes": tf.gather(boxes, order, batch_dims=1),
            "detection_scores": tf.gather(scores, order, batch_dims=1),
            "detection_classes": tf.cast(order + 1, tf.float32),
            output: tf.reduce_sum(here, axis=1),
        }
        if masks:
            found["detection_masks"] = tf.ones_like(scores)[:, :, None, None] * tf.ones([1, 1, 28, 28])
        return found

    def detect_encoded(pictures: Any) -> dict[str, Any]:
        def one(content: Any) -> dict[str, Any]:
            image = tf.io.decode_image(content, channels=3, expand_animations=False)
            return {name: values[0] for name, values in detect(image[None]).items()}

        kinds = dict.fromkeys(detect(tf.zeros([1, 8, 8, 3], tf.uint8)), tf.float32)
        return tf.map_fn(one, pictures, fn_output_signature=kinds)

    module = tf.Module()
    module.detect = tf.function(detect, input_signature=[tf.TensorSpec([batch, None, None, 3], tf.uint8, "inputs")])
    module.detect_encoded = tf.function(detect_encoded, input_signature=[tf.TensorSpec([None], tf.string, "inputs")])
    signatures = {"serving_default": module.detect} | ({"image_bytes": module.detect_encoded} if encoded else {})
    tf.saved_model.save(module, str(directory), signatures=signatures)
    extra = directory / "assets.extra"
    extra.mkdir()
    items = [f"item {{ id: {number} name: '{name}' }}\n" for number, name in enumerate(("red", "green", "blue"), 1)]
    (extra / "label_map.pbtxt").write_text("".join(items))
    return directory


def coloured(*boxes, size=(64, 48)) -> Image.Image:
    """A grey picture with rectangles (xmin, ymin, xmax, ymax), colour."""
    image = Image.new("RGB", size, (120, 120, 120))
    for box, colour in boxes:
        image.paste(colour, box)
    return image


def save_coloured_voc(folder: Path, count: int = 12) -> Path:
    """Pascal VOC with one rectangle of each of two colours a picture; sorted, the classes have the model's numbers."""
    generator = np.random.default_rng(3)
    (folder / "JPEGImages").mkdir(parents=True)
    (folder / "Annotations").mkdir()
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    names = []
    for index in range(count):
        name = f"picture_{index:03d}"
        names.append(name)
        left, top = (int(value) for value in generator.integers(2, 12, 2))
        boxes = [((left, top, left + 20, top + 16), RED), ((40, top + 8, 58, top + 30), GREEN)]
        coloured(*boxes).save(folder / "JPEGImages" / f"{name}.jpg", quality=97, subsampling=0)
        objects = "".join(
            f"<object><name>{label}</name><bndbox><xmin>{box[0] + 1}</xmin><ymin>{box[1] + 1}</ymin>"
            f"<xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>"
            for (box, _), label in zip(boxes, ("a-red", "b-green"), strict=True)
        )
        (folder / "Annotations" / f"{name}.xml").write_text(
            f"<annotation><filename>{name}.jpg</filename><size><width>64</width><height>48</height><depth>3</depth>"
            f"</size>{objects}</annotation>"
        )
    (folder / "ImageSets" / "Main" / "train.txt").write_text(f"{names[0]}\n")
    (folder / "ImageSets" / "Main" / "test.txt").write_text("".join(f"{name}\n" for name in names[1:]))
    return folder


def write_card(directory: Path, **content) -> None:
    """A model.json beside a SavedModel."""
    (directory / "assets.extra").mkdir(exist_ok=True)
    (directory / "assets.extra" / "model.json").write_text(json.dumps(content))
