"""The life of the chief: say that the run is on, connect to the servers, train, and say how it ended."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from mlcore.cluster.config import Cluster
from mlcore.cluster.coordinator import Coordinator
from mlcore.cluster.evaluation import Evaluation, wait_for_evaluation
from mlcore.cluster.guard import PeerGuard
from mlcore.cluster.peers import wait_for_own_port, wait_for_peers
from mlcore.cluster.server import OWN_PORT_TIMEOUT_S
from mlcore.cluster.status import StatusFile
from mlcore.cluster.strategy import import_tensorflow, parameter_server_strategy
from mlcore.runtime.errors import RestartError, Stopped, UsageError
from mlcore.runtime.signals import StopFlag

log = logging.getLogger(__name__)

_CONNECT_TIMEOUT_S = 180.0


class Chief:
    """What `lead` gives: the way to the servers and to the evaluator."""

    def __init__(
        self, cluster: Cluster, model_dir: Path, status: StatusFile, *,
        start_timeout_s: float, stall_timeout_s: float, stop: StopFlag,
    ) -> None:  # fmt: skip
        self.cluster = cluster
        self.guard = PeerGuard(cluster.of("ps"), cluster.of("worker"), on_exit=status.say_error)
        self._model_dir, self._stop = model_dir, stop
        self._start_timeout_s, self._stall_timeout_s = start_timeout_s, stall_timeout_s
        self.coordinator: Coordinator | None = None

    def connect(self) -> Coordinator:
        """Wait for workers and parameter servers, and make the strategy. Not needed where nothing is left to train.

        Raises:
            RestartError: Somebody is missing after `start_timeout_s`, or the own port stays taken.
            Stopped: The stop flag was set.
        """
        wait_for_own_port(self.cluster.me, OWN_PORT_TIMEOUT_S, self._stop)
        import_tensorflow()
        wait_for_peers(self.cluster.of("ps", "worker"), self._start_timeout_s, self._stop)
        self.guard.start()
        with self.guard.bounded(_CONNECT_TIMEOUT_S, "connecting to the cluster"):
            strategy = parameter_server_strategy(self.cluster)
        log.info("%s: the cluster is complete", self.cluster.me.name)
        self.coordinator = Coordinator(strategy, self.cluster, self.guard, self._model_dir, self._stall_timeout_s)
        return self.coordinator

    def disconnect(self) -> None:
        """The servers do not matter any more: everything is saved."""
        self.guard.stop()

    def wait_for_evaluation(self, step: int, timeout_s: float) -> Evaluation | None:
        """The evaluator's metrics of the last checkpoint; None where there is no evaluator or it does not deliver."""
        if not self.cluster.of("evaluator"):
            return None
        return wait_for_evaluation(self._model_dir, step, timeout_s, self._stop)


@contextlib.contextmanager
def lead(
    cluster: Cluster,
    model_dir: Path,
    *,
    goal: str,
    stop: StopFlag,
    start_timeout_s: float = 600.0,
    stall_timeout_s: float = 30.0,
) -> Iterator[Chief]:
    """The chief's run: `running` is said at its beginning, `done` when the block ends well, or else why it did not.

    Raises:
        UsageError: The model directory cannot be written.
        RestartError: In place of an error of TensorFlow that means that a member is lost.
    """
    status = StatusFile(model_dir, goal)
    try:
        status.say("running")
    except OSError as error:
        raise UsageError(f"--model-dir={model_dir}: cannot be written ({error.strerror})") from error
    chief = Chief(
        cluster, model_dir, status, start_timeout_s=start_timeout_s, stall_timeout_s=stall_timeout_s, stop=stop
    )
    try:
        yield chief
        status.say("done")
    except BaseException as error:
        meaning = _meaning(error, chief)
        status.say_error(meaning)
        if meaning is error:
            raise
        raise meaning from error
    finally:
        chief.disconnect()


def _meaning(error: BaseException, chief: Chief) -> BaseException:
    """An error of TensorFlow outside the loop (saving, restoring) may mean that a parameter server is gone."""
    if chief.coordinator is None or isinstance(error, Stopped | RestartError):
        return error
    return chief.coordinator.translate(error) if isinstance(error, import_tensorflow().errors.OpError) else error
