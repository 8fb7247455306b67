"""A variable that is cut over two parameter servers, and its checkpoints: one process with servers of its own.

    python cut_variable.py FOLDER

Three steps on this machine, one on the worker, then back; prints the sizes of the checkpoint's files.
"""

import json
import os
import sys
from pathlib import Path

import numpy as np
from processes import free_ports

from mlcore.cluster.config import parse_tf_config
from mlcore.cluster.strategy import MIN_SHARD_BYTES, parameter_server_strategy
from mlcore.mnist.checkpoints import Checkpoints
from mlcore.mnist.cluster import ClusterCheckpoints
from mlcore.mnist.learner import Learner
from mlcore.mnist.network import Network
from mlcore.mnist.tensorflow import tf

HIDDEN = 1500


def make_learner():
    return Learner(Network((28, 28), [HIDDEN], 10, seed=3), "adam", learning_rate=0.01, total_steps=100)


def state(learner):
    values = [*learner.network.parameters, *learner.optimizer.slots["m"], *learner.optimizer.slots["v"]]
    return [tf.convert_to_tensor(value).numpy() for value in values]


def assert_alike(learner, other):
    for value, expected in zip(state(learner), state(other), strict=True):
        np.testing.assert_allclose(value, expected, atol=1e-6)


def main(folder):
    assert 28 * 28 * HIDDEN * 4 > MIN_SHARD_BYTES
    chief, worker, *servers = (f"127.0.0.1:{port}" for port in free_ports(4))
    roles = {"chief": [chief], "worker": [worker], "ps": servers}
    cluster = parse_tf_config(json.dumps({"cluster": roles, "task": {"type": "chief", "index": 0}}))
    kept = [
        tf.distribute.Server(
            tf.train.ClusterSpec({member.role: {member.index: member.address}}),
            job_name=member.role, task_index=member.index, protocol="grpc",
        )
        for member in cluster.of("worker", "ps")
    ]  # fmt: skip
    strategy = parameter_server_strategy(cluster)
    generator = np.random.default_rng(0)
    imgs = tf.constant(generator.integers(0, 255, (64, 784)), tf.uint8)
    labels = tf.constant(generator.integers(0, 10, 64), tf.int32)

    here = make_learner()
    train_here = tf.function(here.train_step, autograph=False)
    for _ in range(3):
        train_here(imgs, labels)
    Checkpoints(here, folder).save()

    with strategy.scope():
        there = make_learner()
    assert [part.device.rpartition("/device")[0][-6:] for part in there.optimizer.parts[:2]] == ["task:0", "task:1"]
    checkpoints = ClusterCheckpoints(there, folder)
    assert checkpoints.restore() == 3
    assert_alike(there, here)
    coordinator = tf.distribute.coordinator.ClusterCoordinator(strategy)
    coordinator.schedule(tf.function(lambda: there.train_step(imgs, labels), autograph=False))
    coordinator.join()
    train_here(imgs, labels)
    assert_alike(there, here)
    checkpoints.save()

    back = make_learner()
    assert Checkpoints(back, folder).restore() == 4
    assert_alike(back, here)
    print(json.dumps([file.stat().st_size for file in folder.glob("ckpt-4.data-*")]), flush=True)
    del kept


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    os._exit(0)  # servers and a coordinator of TensorFlow do not end
