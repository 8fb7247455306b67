"""Which strategy trains on a cluster, and making it."""

import logging
import os
from typing import Any, Literal, get_args

from mlcore.cluster.config import Cluster, StrategyName
from mlcore.runtime.errors import UsageError
from mlcore.runtime.extras import require

log = logging.getLogger(__name__)

StrategyChoice = Literal["auto", "one_machine", "multi_worker_mirrored", "parameter_server"]

# A variable below this size stays whole on one parameter server; a larger one is cut into equal parts, one for each.
# Cutting a small one costs more round trips than it spreads load.
MIN_SHARD_BYTES = 4 << 20


def import_tensorflow() -> Any:
    """TensorFlow alone, quiet, and told to use Keras 2, since Keras 3 cannot train under parameter servers."""
    os.environ["TF_USE_LEGACY_KERAS"] = "1"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    tensorflow = require("tensorflow", extra="tf")
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    return tensorflow


def choose_strategy(cluster: Cluster | None, choice: StrategyChoice = "auto") -> StrategyName:
    """The strategy of a cluster's roles, unless another is asked for.

    Raises:
        UsageError: The cluster does not have the members for the one that is asked for.
    """
    natural: StrategyName = "one_machine" if cluster is None else cluster.strategy
    if choice in ("auto", natural):
        return natural
    assert choice in get_args(StrategyChoice)
    if choice == "parameter_server":
        raise UsageError("--strategy=parameter_server: the cluster has no ps")
    if choice == "multi_worker_mirrored" and (cluster is None or len(cluster.of("chief", "worker")) < 2):
        raise UsageError("--strategy=multi_worker_mirrored: expected a cluster of at least two workers")
    return choice  # type: ignore[return-value]


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
