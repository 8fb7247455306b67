"""Models, and a server of each that the tests share."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.serving.server import models
from tests.serving.server.processes import Server, serving


@pytest.fixture(scope="session")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Versions 1 and 2 of a classifier, which answer differently."""
    base = tmp_path_factory.mktemp("classifier")
    assert [models.publish_classifier(base, seed) for seed in (1, 2)] == [1, 2]
    return base


@pytest.fixture(scope="session")
def mnist_server(classifier: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of both versions, with a request log. Tests that stop or change a server have their own."""
    folder = tmp_path_factory.mktemp("mnist-server")
    with serving(classifier, folder / "log", "--max-request-mb=4") as server:
        yield server.wait_version(2, 1)


@pytest.fixture(scope="session")
def detector_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of a detector."""
    folder = tmp_path_factory.mktemp("detector")
    models.publish_detector(folder)
    with serving(folder, folder / "log", name="shapes") as server:
        yield server.wait_ready()


@pytest.fixture
def run_server(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts servers that a test has for itself."""
    running = []

    def run(models_dir: Path, *flags: str, name: str = "mnist") -> Server:
        context = serving(models_dir, tmp_path / f"server-{len(running)}.log", *flags, name=name)
        running.append(context)
        return context.__enter__()

    yield run
    for context in running:
        context.__exit__(None, None, None)


@pytest.fixture(scope="session")
def imgs() -> np.ndarray:
    """Five pictures, float32 (5, 28, 28, 1)."""
    return np.random.default_rng(5).random((5, 28, 28, 1), np.float32)
