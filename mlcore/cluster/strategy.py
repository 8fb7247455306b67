"""Which strategy trains on a cluster, and making it."""

import logging
import os
import sys
from typing import Any

from mlcore.cluster.config import ROLES, Cluster, StrategyName
from mlcore.runtime.errors import UsageError
from mlcore.runtime.extras import require

log = logging.getLogger(__name__)

# A variable below this size stays whole on one parameter server; a larger one is cut into equal parts, one for each.
# Cutting a small one costs more round trips than it spreads load.
MIN_SHARD_BYTES = 4 << 20


def import_tensorflow(*, keras: bool = True) -> Any:
    """TensorFlow, quiet, and told to use Keras 2, since Keras 3 cannot train under parameter servers.

    Args:
        keras: Off, Keras is not loaded: a server needs none.
    """
    os.environ["TF_USE_LEGACY_KERAS"] = "1"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # TensorFlow loads Keras at its import and goes on when it cannot; None in sys.modules says that it cannot.
    hidden = () if keras else tuple(name for name in ("keras", "tf_keras") if name not in sys.modules)
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        tensorflow = require("tensorflow", extra="tf")
    finally:
        for name in hidden:
            sys.modules.pop(name, None)
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    return tensorflow


def choose_strategy(cluster: Cluster | None, choice: str = "auto") -> StrategyName:
    """The strategy of a cluster's roles, unless another is asked for.

    Args:
        cluster: The cluster; None on one machine.
        choice: auto, multi_worker_mirrored, parameter_server, or any other name for one machine.

    Raises:
        UsageError: The cluster does not have the members for the one that is asked for.
    """
    natural: StrategyName = "one_machine" if cluster is None else cluster.strategy
    if choice in ("auto", natural):
        return natural
    if choice == "parameter_server":
        raise UsageError("--strategy=parameter_server: expected a cluster with workers and ps (TF_CONFIG)")
    if choice == "multi_worker_mirrored":
        if cluster is None or len(cluster.of("chief", "worker")) < 2:
            raise UsageError("--strategy=multi_worker_mirrored: expected a cluster of at least two workers (TF_CONFIG)")
        return "multi_worker_mirrored"
    return "one_machine"


def no_parameter_servers(cluster: Cluster) -> UsageError:
    """The error of a training step that shares its work through parameter servers and has none.

    Without it the first worker would train alone and the others idle beside it, which looks like success.
    """
    roles = ", ".join(f"{len(cluster.of(role))} {role}" for role in ROLES if cluster.of(role))
    return UsageError(
        f"TF_CONFIG: the cluster has {roles} and no ps, through which training shares its work: "
        "give the job at least one ps, or one replica in all"
    )


def _resolver(tf: Any, cluster: Cluster, spec: dict[str, dict[int, str]]) -> Any:
    return tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec(spec), task_type=cluster.role, task_id=cluster.index, rpc_layer="grpc"
    )


def parameter_server_strategy(cluster: Cluster) -> Any:
    """Connect to the workers and parameter servers, all of which must be up. Only the chief calls this."""
    tf = import_tensorflow()
    servers = len(cluster.of("ps"))
    partitioner = None
    if servers > 1:
        partitioner = tf.distribute.experimental.partitioners.MinSizePartitioner(MIN_SHARD_BYTES, max_shards=servers)
    return tf.distribute.ParameterServerStrategy(
        _resolver(tf, cluster, cluster.tensorflow_spec()), variable_partitioner=partitioner
    )


def multi_worker_mirrored_strategy(cluster: Cluster) -> Any:
    """Join the other workers; must be called before TensorFlow runs its first operation."""
    tf = import_tensorflow()
    spec = {role: members for role, members in cluster.tensorflow_spec().items() if role != "ps"}
    return tf.distribute.MultiWorkerMirroredStrategy(_resolver(tf, cluster, spec))
