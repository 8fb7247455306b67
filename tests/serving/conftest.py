"""Models, data and servers that several tests ask."""

from pathlib import Path

import pytest

from mlcore.data.convert import convert
from tests.serving.models import save_block_data, save_classifier, save_coloured_voc, save_detector, save_echo
from tests.serving.peers import TfServing


@pytest.fixture(scope="session")
def model_bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Name -> base directory: blocks (1, 2 the right one), wrong, colours (a detector), pixels (one that takes no
    encoded pictures), echo."""
    root = tmp_path_factory.mktemp("models")
    for number in (1, 2):
        save_classifier(root / "blocks" / str(number), wrong=number == 1)
    save_classifier(root / "wrong" / "1", wrong=True)
    save_detector(root / "colours" / "3")
    save_detector(root / "pixels" / "1", encoded=False)
    save_echo(root / "echo" / "1")
    return {base.name: base for base in root.iterdir()}


@pytest.fixture(scope="session")
def block_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 examples of each part, whose truth the blocks know."""
    return save_block_data(tmp_path_factory.mktemp("blocks") / "data")


@pytest.fixture(scope="session")
def coloured_records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records with a red and a green rectangle in each of 11 test pictures."""
    root = tmp_path_factory.mktemp("coloured")
    convert(data_dir=save_coloured_voc(root / "voc"), output_dir=root / "records", shards=1)
    return root / "records"


@pytest.fixture(scope="session")
def tf_serving(model_bases: dict[str, Path]):
    """TensorFlow Serving's gRPC around the models."""
    peer = TfServing(model_bases)
    yield peer
    peer.stop()
