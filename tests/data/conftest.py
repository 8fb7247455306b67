"""What the tests of this folder share; they can import its helper modules (voc_sets)."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def voc(tmp_path):
    """A data set in VOC's layout, empty yet."""
    from voc_sets import VocSet

    return VocSet(tmp_path / "raw")
