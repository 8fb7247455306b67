"""Part of the real MNIST, small enough to train on in seconds."""

import gzip
import struct

import pytest

from mlcore.data.mnist import FILES, load_mnist


@pytest.fixture(scope="session")
def mnist(shared_data):
    return load_mnist(shared_data / "mnist")


@pytest.fixture(scope="session")
def small_mnist(mnist, tmp_path_factory):
    """3,100 training and 600 test examples as IDX files."""
    folder = tmp_path_factory.mktemp("mnist")
    for part, examples in (("train", mnist.train[:3100]), ("t10k", mnist.t10k[:600])):
        images = struct.pack(">4I", 0x803, *examples.imgs.shape) + examples.imgs.tobytes()
        labels = struct.pack(">2I", 0x801, len(examples)) + examples.labels.tobytes()
        for name, content in zip(FILES[part], (images, labels), strict=True):
            (folder / name).write_bytes(gzip.compress(content, 1, mtime=0))
    return folder
