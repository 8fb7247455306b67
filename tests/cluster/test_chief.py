"""What the chief does before it has a cluster."""

import json

import pytest
from processes import free_ports

from mlcore.cluster.chief import lead
from mlcore.cluster.config import parse_tf_config
from mlcore.cluster.status import read_status
from mlcore.cluster.timeouts import Timeouts
from mlcore.runtime.errors import RestartError, UsageError


@pytest.fixture
def cluster():
    chief, worker, ps = (f"127.0.0.1:{port}" for port in free_ports(3))
    roles = {"chief": [chief], "worker": [worker], "ps": [ps]}
    return parse_tf_config(json.dumps({"cluster": roles, "task": {"type": "chief", "index": 0}}))


def test_model_directory_that_cannot_be_written_is_wrong_use(cluster, tmp_path):
    (tmp_path / "file").touch()
    model_dir = tmp_path / "file" / "model"
    with (
        pytest.raises(UsageError, match=rf"--model-dir={model_dir}: cannot be written"),
        lead(cluster, model_dir, goal="g", timeouts=Timeouts()),
    ):
        raise AssertionError("the run has begun")


@pytest.mark.parametrize("way", ["connect", "gather"])
def test_missing_members_are_named_after_the_bound(cluster, tmp_path, way):
    pytest.importorskip("tensorflow")  # the extra tf
    with (
        pytest.raises(RestartError, match=r"after 0 s the cluster is not complete: .*worker 0 \(127\.0\.0\.1:"),
        lead(cluster, tmp_path, goal="g", timeouts=Timeouts(start_timeout_s=0)) as chief,
    ):
        getattr(chief, way)()
    assert read_status(tmp_path).state == "restarting"
