"""The life of the chief: say that the run is on, connect to the servers, train, and say how it ended."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from mlcore.cluster.config import Cluster
from mlcore.cluster.coordinator import Coordinator
from mlcore.cluster.evaluation import Evaluation, wait_for_evaluation
from mlcore.cluster.guard import PeerGuard
from mlcore.cluster.peers import Presence, describe, troubles_with, wait_for_own_port, wait_for_peers
from mlcore.cluster.status import StatusFile, exit_code_of
from mlcore.cluster.strategy import parameter_server_strategy
from mlcore.cluster.team import Team, join_team, meaning_of, others_in_team
from mlcore.cluster.tensorflow import import_tensorflow
from mlcore.cluster.timeouts import OWN_PORT_TIMEOUT_S, Timeouts
from mlcore.runtime.ending import end_without_clean_up
from mlcore.runtime.errors import RestartError, Stopped, UsageError
from mlcore.runtime.signals import StopFlag

log = logging.getLogger(__name__)

_CONNECT_TIMEOUT_S = 180.0
# Coordinators wait for all members when they are collected, so they never are.
_KEPT: list[Coordinator] = []


class Chief:
    """What `lead` gives: the way to the servers, or to those that train in step, and to the evaluator."""

    def __init__(
        self, cluster: Cluster, model_dir: Path, status: StatusFile, timeouts: Timeouts, stop: StopFlag | None
    ) -> None:
        self.cluster = cluster
        self.guard = PeerGuard((), ())
        self._model_dir, self._status, self._stop = model_dir, status, stop
        self._timeouts = timeouts
        self.coordinator: Coordinator | None = None
        self.team: Team | None = None
        # Seen from the start, so that the others know for whom they wait, also when nothing is left to train.
        self._presence = Presence(cluster.me)

    def begin(self) -> None:
        """Say that the model directory is this run's own: from now on the evaluator reads it."""
        self._status.say("running")

    def connect(self) -> Coordinator:
        """Wait for workers and parameter servers, and make the strategy. Not needed where nothing is left to train.

        Raises:
            RestartError: Somebody is missing after `start_timeout_s`.
            Stopped: The stop flag was set.
        """
        import_tensorflow()
        wait_for_peers(self.cluster.of("ps", "worker"), self._timeouts.start_timeout_s, self._stop)
        self.guard = PeerGuard(self.cluster.of("ps"), self.cluster.of("worker"), on_exit=self._status.say_error)
        self.guard.start()
        self._presence.close()  # TensorFlow's server takes the port over
        with self.guard.bounded(_CONNECT_TIMEOUT_S, "connecting to the cluster"):
            strategy = parameter_server_strategy(self.cluster)
        log.info("%s: the cluster is complete", self.cluster.me.name)
        self.coordinator = Coordinator(
            strategy, self.cluster, self.guard, self._model_dir, self._timeouts.stall_timeout_s
        )
        _KEPT.append(self.coordinator)
        return self.coordinator

    def gather(self) -> Team:
        """Wait for the others that train in step, and make the strategy; before TensorFlow runs an operation.

        Raises:
            RestartError: Somebody is missing after `start_timeout_s`.
            Stopped: The stop flag was set.
        """
        self._status.say("gathering")
        self.guard = PeerGuard(others_in_team(self.cluster), (), on_exit=self._status.say_error)
        self.team = join_team(self.cluster, self.guard, self._presence, self._timeouts, self._stop)
        return self.team

    def disconnect(self) -> None:
        """What happens to the others does not matter any more: everything is saved."""
        if self.team is not None:
            self._status.say("running")  # one that is started again has nothing to join
        self.guard.release_servers()

    def close(self) -> None:
        """Watch nobody, and free the port."""
        self.guard.stop()
        self._presence.close()

    def leave(self, exit_code: int) -> None:
        """Where a member does not answer, TensorFlow's own end of the process would wait for it: forgo that.

        Where a team breaks up, too, some may still be in the middle of it. And servers that have heard that the chief
        is done are gone a moment later: where their hosts go with them, as pods do, nobody even refuses to answer.
        """
        if self.team is not None and exit_code:
            end_without_clean_up(exit_code)
        elif self.coordinator is not None and (troubles := troubles_with(self.cluster.of("ps", "worker"))):
            log.debug("the process will end without TensorFlow's clean-up: %s", describe(troubles))
            end_without_clean_up(exit_code)
        elif self.coordinator is not None and not exit_code:
            end_without_clean_up()

    def wait_for_evaluation(self, step: int) -> Evaluation | None:
        """The evaluator's metrics of the last checkpoint; None where there is no evaluator or it does not deliver."""
        if not self.cluster.of("evaluator"):
            return None
        return wait_for_evaluation(
            self._model_dir, step, self._timeouts.evaluation_timeout_s, self._stop, while_waiting=self.guard.check
        )


@contextlib.contextmanager
def lead(
    cluster: Cluster,
    model_dir: Path,
    *,
    goal: str,
    timeouts: Timeouts,
    stop: StopFlag | None = None,
) -> Iterator[Chief]:
    """The chief's run: `done` is said when the block ends well, or else why it did not.

    Args:
        cluster: The cluster, of which this process is the chief.
        model_dir: Model directory, shared by all members.
        goal: What the job is for (`goal_of`).
        timeouts: Bounds of waiting.
        stop: Ends all waiting when it is set; without it an exception must (`raise_on_stop`).

    Raises:
        UsageError: The model directory cannot be written.
        RestartError: The own port stays taken; or a member is lost, in place of TensorFlow's error.
    """
    wait_for_own_port(cluster.me, OWN_PORT_TIMEOUT_S, stop)
    status = StatusFile(model_dir, goal)
    try:
        status.say("starting")
    except OSError as error:
        raise UsageError(f"--model-dir={model_dir}: cannot be written ({error.strerror})") from error
    chief = Chief(cluster, model_dir, status, timeouts, stop)
    try:
        yield chief
        status.say("done")
        chief.leave(0)
    except BaseException as error:
        meaning = _meaning(error, chief)
        status.say_error(meaning)
        chief.leave(exit_code_of(meaning))
        if meaning is error:
            raise
        raise meaning from error
    finally:
        chief.close()


def _meaning(error: BaseException, chief: Chief) -> BaseException:
    """An error of TensorFlow (in a team; else outside the loop) may mean that a member is gone."""
    if chief.team is not None:
        return meaning_of(error, chief.team, others_in_team(chief.cluster)) or error
    if chief.coordinator is None or isinstance(error, Stopped | RestartError):
        return error
    for each in (error, error.__cause__):  # a trainer may have taken it for a directory that cannot be written
        if isinstance(each, import_tensorflow().errors.OpError):
            meaning = chief.coordinator.translate(each)
            return meaning if isinstance(meaning, RestartError) else error
    return error
