"""Fixtures that all tests share."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes says more about the machine than about us.
settings.register_profile("project", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("project")

PROJECT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def project() -> Path:
    """The checkout."""
    return PROJECT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data sets: the folder shared/data beside the checkout, or $MLCORE_TEST_DATA."""
    folder = Path(os.environ.get("MLCORE_TEST_DATA") or PROJECT.parent / "shared" / "data")
    assert folder.is_dir(), f"{folder} is missing; set MLCORE_TEST_DATA to the folder with bccd.tar.gz and mnist/"
    return folder
