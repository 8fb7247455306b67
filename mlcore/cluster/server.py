"""The life of a worker or a parameter server: serve the chief, and end when there is nothing more to serve.

TensorFlow's own `server.join()` never returns. Here the main thread watches the chief instead (`mlcore.cluster.watch`).
On SIGTERM a parameter server ends with 143 at once; a worker first lets the chief take it out, so that no closure is
cut.
"""

import logging
import os
import time
from pathlib import Path

from mlcore.cluster.config import Cluster, Member
from mlcore.cluster.leaving import announce_leaving, return_to_work, was_let_go
from mlcore.cluster.peers import wait_for_own_port
from mlcore.cluster.status import read_status
from mlcore.cluster.tensorflow import import_server_modules
from mlcore.cluster.timeouts import OWN_PORT_TIMEOUT_S, Timeouts
from mlcore.cluster.watch import Watch
from mlcore.runtime.cores import usable_cores
from mlcore.runtime.errors import RestartError
from mlcore.runtime.signals import stop_flag

log = logging.getLogger(__name__)

DRAIN_TIMEOUT_S = 8.0
_POLL_INTERVAL_S = 1.0


def serve(
    cluster: Cluster, model_dir: Path, *, goal: str, timeouts: Timeouts, threads_an_operation: int | None = None
) -> None:
    """Serve as worker or parameter server until the chief is done.

    Args:
        cluster: The cluster; this process must be a worker or a ps of it.
        model_dir: Model directory, shared by all members.
        goal: What the job is for (`goal_of`).
        timeouts: Bounds of waiting.
        threads_an_operation: That an operation may use; None: this member's share of its host's cores. For small
            operations one is faster.

    Raises:
        RestartError: The chief is gone, or the own port stays taken.
        Stopped: SIGTERM.
        MlcoreError: The chief's run failed for good.
    """
    me = cluster.me
    with stop_flag() as stop:
        wait_for_own_port(me, OWN_PORT_TIMEOUT_S, stop)
        # What is in the model directory before this server can serve anybody belongs to an earlier run.
        watch = Watch(cluster, read_status(model_dir), goal, timeouts)
        server = _start(me, threads_an_operation or threads_of(cluster))
        return_to_work(model_dir, me)
        log.info("%s: serving", me.name)
        while not watch.is_over(read_status(model_dir)):
            if stop.wait(_POLL_INTERVAL_S):
                if me.role == "worker":
                    _drain(me, model_dir, watch)
                raise stop.error()
        log.info("%s: the chief is done", me.name)
        del server


def threads_of(cluster: Cluster) -> int:
    """Threads for an operation: where workers share a host (a cluster on one machine), each gets a share of its cores.

    Else all of them work on an operation with as many threads as there are cores, and wait for each other.

    Returns:
        A number of threads; 0: TensorFlow's own choice, or the user's in TF_NUM_INTRAOP_THREADS.
    """
    sharing = sum(member.host == cluster.me.host for member in cluster.of("worker"))
    if sharing < 2 or os.environ.get("TF_NUM_INTRAOP_THREADS"):
        return 0
    return max(1, usable_cores() // sharing)


def _start(me: Member, threads_an_operation: int) -> object:
    """TensorFlow's server. It is told of itself alone: the chief names the others when it connects."""
    server_lib, config_pb2, errors = import_server_modules()
    try:
        return server_lib.Server(
            server_lib.ClusterSpec({me.role: {me.index: me.address}}),
            job_name=me.role, task_index=me.index, protocol="grpc",
            config=config_pb2.ConfigProto(intra_op_parallelism_threads=threads_an_operation),
        )  # fmt: skip
    except errors.OpError as error:
        raise RestartError(f"{me.name}: the server cannot start: {error.message}") from error


def _drain(me: Member, model_dir: Path, watch: Watch) -> None:
    """Ask the chief to give this worker nothing more, and wait until its last closure is through."""
    if not watch.chief_answers():
        return
    log.info("%s: asked to stop; finishing the closure at hand", me.name)
    announce_leaving(model_dir, me)
    end = time.monotonic() + DRAIN_TIMEOUT_S
    while time.monotonic() < end:
        if was_let_go(model_dir, me):
            log.info("%s: drained", me.name)
            return
        time.sleep(0.1)
    log.warning("%s: the chief did not let go within %.0f s; leaving all the same", me.name, DRAIN_TIMEOUT_S)
