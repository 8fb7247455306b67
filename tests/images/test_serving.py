"""A model served from its image, and asked from the images of the clients."""

import time
from collections.abc import Iterator

import pytest

from tests.images.containers import HARDENED, docker

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

PORTS = {"tfs-grpc": 8500, "v1": 8080, "v2": 8080, "v2-grpc": 8081}


@pytest.fixture
def models(images, volume) -> str:
    """A volume with version 1 of an untrained classifier in /models."""
    docker(
        "run", "--rm", "--network=none", "--user=0:0", f"--volume={volume}:/models", "--entrypoint=python",
        images["mnist-train"].reference, "-c",
        "import numpy as np; from pathlib import Path; from mlcore.mnist.export import publish; "
        "from mlcore.mnist.network import Network; "
        "publish(Network((28, 28), (16,), 10, seed=1), Path('/models/digits'), classes=list('0123456789'), "
        "parameters={}, data_version='none', metrics={}, samples=np.zeros((2, 28, 28), np.uint8))",
    )  # fmt: skip
    return volume


@pytest.fixture
def network(container) -> Iterator[str]:
    name = f"{container}-net"
    docker("network", "create", "--internal", name)
    yield name
    docker("rm", "--force", container, check=False)
    docker("network", "rm", name, check=False)


@pytest.mark.parametrize("user", ["10001:0", "1000740000:0"])
def test_a_model_on_a_read_only_volume_is_served_to_clients_without_tensorflow(
    images, models, network, container, shared_data, user
):
    docker("run", "--detach", f"--name={container}", *HARDENED, f"--network={network}", f"--user={user}",
           f"--volume={models}:/models:ro", images["serve"].reference, "--model-name=digits",
           "--models-dir=/models/digits")  # fmt: skip
    mnist = f"--volume={shared_data / 'mnist'}:/mnist:ro"
    for protocol, port in PORTS.items():
        result = images["verify"].run(
            f"--server={container}:{port}", f"--protocol={protocol}", "--model-name=digits", "--data-dir=/mnist",
            "--samples=100", "--ready-timeout-s=60", "--output-dir=/tmp/verified",
            options=(*HARDENED, f"--network={network}", f"--user={user}", mnist),
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        assert "samples=100" in result.stdout and "edge_failed=0" in result.stdout
    started = time.monotonic()
    docker("kill", "--signal=TERM", container)
    assert docker("wait", container).stdout.strip() == "143"
    assert time.monotonic() - started < 10
    assert "Traceback" not in docker("logs", container).stderr
