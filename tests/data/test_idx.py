import gzip
import struct

import numpy as np
import pytest

from mlcore.data.idx import read_images, read_labels
from mlcore.runtime.errors import DataError


def idx(magic, shape, data):
    return struct.pack(f">{1 + len(shape)}I", magic, *shape) + bytes(data)


IMAGES = idx(0x803, (2, 3, 4), range(24))
LABELS = idx(0x801, (3,), [7, 0, 9])


@pytest.mark.parametrize("pack", [gzip.compress, bytes], ids=["gzipped", "plain"])
def test_images_and_labels_are_read(tmp_path, pack):
    (tmp_path / "i").write_bytes(pack(IMAGES))
    (tmp_path / "l").write_bytes(pack(LABELS))
    np.testing.assert_array_equal(read_images(tmp_path / "i"), np.arange(24).reshape(2, 3, 4))
    assert read_labels(tmp_path / "l").tolist() == [7, 0, 9]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cut off in its magic number, expected 0x00000803"),
        (IMAGES[:3], "cut off in its magic number"),
        (LABELS, r"magic number 0x00000801 \(labels\), expected 0x00000803 \(images\)"),
        (b"<html>403 Forbidden", "magic number 0x3c68746d, expected 0x00000803"),
        (IMAGES[:11], "cut off in its header, expected the lengths of count, rows, columns"),
        (IMAGES[:-1], r"23 bytes of data, expected 24 \(2 count x 3 rows x 4 columns\)"),
        (IMAGES + b"x", "more bytes of data, expected 24"),
        (idx(0x803, (0, 28, 28), []), "count is 0, expected at least 1"),
        (gzip.compress(IMAGES)[:-12], "gzip data is damaged or cut off"),
        (gzip.compress(IMAGES)[:12] + b"\xff" * 30, "gzip data is damaged or cut off"),
    ],
    ids=["empty", "three bytes", "labels", "web page", "header", "short", "long", "no images", "cut", "damaged"],
)
def test_bad_file_is_named_with_field_and_expectation(tmp_path, content, message):
    path = tmp_path / "train-images"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"train-images: .*{message}"):
        read_images(path)


def test_header_that_claims_more_than_there_is_allocates_nothing_like_it(tmp_path):
    path = tmp_path / "bomb"
    path.write_bytes(idx(0x803, (2, 2, 2), range(8)) + bytes(1000))
    with pytest.raises(DataError, match="more bytes of data, expected 8"):
        read_images(path)
