"""The peer of benchmarks/convert.py: Pets to TFRecords with TensorFlow, one image after the other.

Does what TensorFlow's create_pet_tf_record does, written for this benchmark: the same libraries, the same features, ten
shards for each split, 70 % of the images for training. As there, the trimap is decoded whatever the target; the target
`heads-lean` leaves it out, which is the least that a loop over TensorFlow's writer can do for heads.
"""

import contextlib
import hashlib
import io
import random
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf
from lxml import etree
from PIL import Image


def as_dict(element):
    """The elements below an XML element; objects as a list."""
    if len(element) == 0:
        return {element.tag: element.text}
    values = {}
    for child in element:
        value = as_dict(child)
        if child.tag == "object":
            values.setdefault("object", []).append(value["object"])
        else:
            values[child.tag] = value[child.tag]
    return {element.tag: values}


def ints(values):
    return tf.train.Feature(int64_list=tf.train.Int64List(value=values))


def floats(values):
    return tf.train.Feature(float_list=tf.train.FloatList(value=values))


def texts(values):
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))


def to_example(name, folder, class_ids, target):
    """One tf.train.Example."""
    heads = target != "bodies"
    with tf.io.gfile.GFile(f"{folder}/annotations/xmls/{name}.xml", "r") as file:
        data = as_dict(etree.fromstring(file.read()))["annotation"]
    with tf.io.gfile.GFile(f"{folder}/images/{data['filename']}", "rb") as file:
        encoded = file.read()
    image = Image.open(io.BytesIO(encoded))
    if image.format != "JPEG":
        raise ValueError("not a JPEG")
    key = hashlib.sha256(encoded).hexdigest()
    width, height = int(data["size"]["width"]), int(data["size"]["height"])
    if target != "heads-lean":
        with tf.io.gfile.GFile(f"{folder}/annotations/trimaps/{name}.png", "rb") as file:
            trimap = Image.open(io.BytesIO(file.read()))
        if trimap.format != "PNG":
            raise ValueError("not a PNG")
        mask = np.asarray(trimap)
        columns = np.where(np.any(mask != 2, axis=0))
        rows = np.where(np.any(mask != 2, axis=1))
    xmins, ymins, xmaxs, ymaxs, classes, names, truncated, poses, difficult, masks = ([] for _ in range(10))
    for entry in data.get("object", []):
        difficult.append(int(entry["difficult"] == "1"))
        if heads:
            box = entry["bndbox"]
            xmin, xmax, ymin, ymax = (float(box[side]) for side in ("xmin", "xmax", "ymin", "ymax"))
        else:
            xmin, xmax, ymin, ymax = map(float, (np.min(columns), np.max(columns), np.min(rows), np.max(rows)))
            buffer = io.BytesIO()
            Image.fromarray((mask != 2).astype(np.uint8)).save(buffer, format="PNG")
            masks.append(buffer.getvalue())
        xmins.append(xmin / width)
        ymins.append(ymin / height)
        xmaxs.append(xmax / width)
        ymaxs.append(ymax / height)
        breed = name.rpartition("_")[0]
        names.append(breed.encode())
        classes.append(class_ids[breed])
        truncated.append(int(entry["truncated"]))
        poses.append(entry["pose"].encode())
    features = {
        "image/height": ints([height]),
        "image/width": ints([width]),
        "image/filename": texts([data["filename"].encode()]),
        "image/source_id": texts([data["filename"].encode()]),
        "image/key/sha256": texts([key.encode()]),
        "image/encoded": texts([encoded]),
        "image/format": texts([b"jpeg"]),
        "image/object/bbox/xmin": floats(xmins),
        "image/object/bbox/xmax": floats(xmaxs),
        "image/object/bbox/ymin": floats(ymins),
        "image/object/bbox/ymax": floats(ymaxs),
        "image/object/class/text": texts(names),
        "image/object/class/label": ints(classes),
        "image/object/difficult": ints(difficult),
        "image/object/truncated": ints(truncated),
        "image/object/view": texts(poses),
    }
    if not heads:
        features["image/object/mask"] = texts(masks)
    return tf.train.Example(features=tf.train.Features(feature=features))


def write_split(path, names, folder, class_ids, target):
    """Ten shards, dealt out in turn."""
    with contextlib.ExitStack() as stack:
        writers = [stack.enter_context(tf.io.TFRecordWriter(f"{path}-{shard:05d}-of-00010")) for shard in range(10)]
        for index, name in enumerate(names):
            writers[index % 10].write(to_example(name, folder, class_ids, target).SerializeToString())


def main(folder, out, target):
    """Convert the images of trainval.txt."""
    Path(out).mkdir(parents=True)
    with tf.io.gfile.GFile(f"{folder}/annotations/trainval.txt") as file:
        names = [line.split()[0] for line in file]
    random.Random(42).shuffle(names)
    class_ids = {breed: number for number, breed in enumerate(sorted({name.rpartition("_")[0] for name in names}), 1)}
    training = int(0.7 * len(names))
    write_split(f"{out}/train.record", names[:training], folder, class_ids, target)
    write_split(f"{out}/val.record", names[training:], folder, class_ids, target)


if __name__ == "__main__":
    main(*sys.argv[1:])
