"""Which strategy trains on a cluster, and making it."""

import logging
from typing import Any

from mlcore.cluster.config import Cluster, StrategyName
from mlcore.cluster.tensorflow import import_tensorflow
from mlcore.runtime.errors import UsageError

log = logging.getLogger(__name__)

# A variable below this size stays whole on one parameter server; a larger one is cut into equal parts, one for each.
# Cutting a small one costs more round trips than it spreads load.
MIN_SHARD_BYTES = 4 << 20


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
    if cluster is not None and len(cluster.of("chief", "worker")) > 1:
        log.warning("--strategy=%s: one member trains alone, the others of the cluster idle beside it", choice)
    return "one_machine"


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


def multi_worker_mirrored_strategy(cluster: Cluster, heartbeat_timeout_s: float = 30.0) -> Any:
    """Join the other workers; must be called before TensorFlow runs its first operation.

    Args:
        cluster: The cluster.
        heartbeat_timeout_s: A member that is silent for so long breaks up the rest.
    """
    from tensorflow.compiler.xla.tsl.protobuf import coordination_config_pb2
    from tensorflow.python.eager import context

    tf = import_tensorflow()
    spec = {role: members for role, members in cluster.tensorflow_spec().items() if role != "ps"}
    if context.context().coordination_service is None:  # the strategy would take 10 s, which a busy machine passes
        jobs = [coordination_config_pb2.CoordinatedJob(name=role, num_tasks=len(spec[role])) for role in sorted(spec)]
        context.context().configure_coordination_service(
            service_type="standalone",
            service_leader=f"/job:{'chief' if 'chief' in spec else 'worker'}/replica:0/task:0",
            heartbeat_timeout_in_ms=int(heartbeat_timeout_s * 1000),
            coordinated_jobs=jobs,
        )
    return tf.distribute.MultiWorkerMirroredStrategy(_resolver(tf, cluster, spec))
