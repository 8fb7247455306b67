"""What a worker or parameter server loads."""

import subprocess
import sys
from pathlib import Path

import pytest

from mlcore.cluster.config import Cluster, Member
from mlcore.cluster.server import threads_of
from mlcore.cluster.tensorflow import not_saved, reason_of
from mlcore.runtime.cores import usable_cores
from mlcore.runtime.errors import TransientError, UsageError

pytest.importorskip("tensorflow")  # the extra tf

SERVER = """
import socket, sys
from mlcore.cluster import server
from mlcore.cluster.config import Member
from mlcore.runtime.errors import RestartError

with socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True) as taken:
    try:
        server._start(Member("ps", 0, f"127.0.0.1:{taken.getsockname()[1]}"), 0)
    except RestartError as error:
        print(error)
    port = taken.getsockname()[1]
running = server._start(Member("ps", 0, f"127.0.0.1:{port}"), 1)
print(running.target)
print("tensorflow" in sys.modules, "tensorflow.python.framework.ops" in sys.modules, "tf_keras" in sys.modules)
"""

WHOLE = """
from mlcore.cluster.tensorflow import import_tensorflow
tf = import_tensorflow()
print(tf.function(lambda x: x + 1)(tf.constant(2)).numpy(), tf.keras.layers.Dense.__module__[:8])
"""


def run(program):
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_server_starts_without_the_api_of_tensorflow_and_names_a_port_that_is_taken():
    taken, target, loaded = run(SERVER)
    assert taken.startswith("ps 0 (127.0.0.1:")
    assert "the server cannot start" in taken
    assert target.startswith("grpc://127.0.0.1:")
    assert loaded == "False False False"


@pytest.mark.parametrize(("hosts", "sharing"), [(["a", "b", "c"], 1), (["a", "a", "b"], 2), (["a", "a", "a"], 3)])
@pytest.mark.parametrize("role", ["worker", "ps"])
def test_workers_of_one_host_share_its_cores(monkeypatch, role, hosts, sharing):
    workers = [Member("worker", index, f"{host}:{2222 + index}") for index, host in enumerate(hosts)]
    members = (Member("chief", 0, "c:2222"), *workers, Member("ps", 0, "a:3333"))
    cluster = Cluster(members, role, 0)
    monkeypatch.delenv("TF_NUM_INTRAOP_THREADS", raising=False)
    assert threads_of(cluster) == (max(1, usable_cores() // sharing) if sharing > 1 else 0)
    monkeypatch.setenv("TF_NUM_INTRAOP_THREADS", "3")
    assert threads_of(cluster) == 0


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("NOT_FOUND: a; No such file\n [[{{node}}]]", "NOT_FOUND: a; No such file"),
        ("2 root error(s) found.\n  (0) UNKNOWN:  b; Full\n [[x]]\n  (1) UNKNOWN: c", "UNKNOWN:  b; Full"),
        ("", "ValueError"),
    ],
    ids=["one", "one of each member", "without text"],
)
def test_reason_of_an_error_is_one_line(text, reason):
    assert reason_of(ValueError(text)) == reason


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        ("RESOURCE_EXHAUSTED: /m/ckpt; No space left on device", TransientError, "no room on the disk"),
        ("UNKNOWN: /m/ckpt; Disk quota exceeded", TransientError, "no room on the disk"),
        ("PERMISSION_DENIED: /m/ckpt; Permission denied", UsageError, "Permission denied"),
    ],
)
def test_a_full_disk_may_have_room_later_and_other_reasons_need_somebody(text, kind, words):
    error = not_saved(Path("/m"), 7, ValueError(text))
    assert type(error) is kind
    assert "--model-dir=/m: the checkpoint of step 7 cannot be written" in str(error)
    assert words in str(error) and "what was saved before is whole" in str(error)


@pytest.mark.slow
def test_process_with_a_server_can_still_load_all_of_tensorflow():
    assert run(SERVER + WHOLE)[-1] == "3 tf_keras"
