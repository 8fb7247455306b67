"""Members that train in step, each on its part of every batch: MultiWorkerMirroredStrategy and the life of a follower.

The chief (worker 0 where there is none) leads as everywhere (`mlcore.cluster.chief`); the others follow: they come in
when it gathers its team, do what it does step by step, write nothing, and end when it is done. One that is
lost ends all the others with 138, and all go on from the last checkpoint. A stop is agreed upon: whoever is asked to,
all end after the same step.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from mlcore.cluster.config import Cluster, Member
from mlcore.cluster.guard import PeerGuard
from mlcore.cluster.peers import Presence, wait_for_own_port, wait_for_peers
from mlcore.cluster.status import State, exit_code_of, read_status
from mlcore.cluster.strategy import multi_worker_mirrored_strategy
from mlcore.cluster.tensorflow import import_tensorflow, reason_of
from mlcore.cluster.timeouts import OWN_PORT_TIMEOUT_S, Timeouts
from mlcore.cluster.watch import Watch
from mlcore.runtime.ending import end_without_clean_up
from mlcore.runtime.errors import RestartError, Stopped
from mlcore.runtime.signals import StopFlag

log = logging.getLogger(__name__)

# Strategies are made when all are there: from then on it takes seconds.
_JOIN_TIMEOUT_S = 180.0
_POLL_INTERVAL_S = 0.5
# For which a follower whose team broke up waits for the chief to say why, and one that is to stop for it to have saved.
_LAST_WORD_S = 5.0
_SAVING_S = 25.0


def others_in_team(cluster: Cluster) -> tuple[Member, ...]:
    """Those with whom this process trains in step."""
    return tuple(member for member in cluster.of("chief", "worker") if member != cluster.me)


class Team:
    """The processes that train in step, as one of them sees them.

    Attributes:
        strategy: A MultiWorkerMirroredStrategy.
        size: Number of its processes.
        index: This one's number among them.
        agreed: What they last agreed upon.
    """

    def __init__(self, cluster: Cluster, strategy: Any, guard: PeerGuard) -> None:
        tf = import_tensorflow()
        trainers = cluster.of("chief", "worker")
        self.strategy, self.size, self.index = strategy, len(trainers), trainers.index(cluster.me)
        self.agreed = False
        self._guard = guard

        def total(values: Any) -> Any:
            return strategy.reduce(tf.distribute.ReduceOp.SUM, strategy.run(tf.identity, args=(values,)), axis=None)

        self._total = tf.function(total, autograph=False, input_signature=[tf.TensorSpec([None], tf.int64)])

    def agree(self, wish: bool) -> bool:
        """Whether any member wishes it; all members must call this at the same point.

        Raises:
            RestartError: A member is lost.
        """
        self.agreed = bool(self._sum([int(wish)])[0] > 0)
        return self.agreed

    def _sum(self, values: Sequence[int]) -> Any:
        """The sum of what the members give, which is here once all have come, however long that takes.

        A thread waits for them inside TensorFlow, so that the main thread can answer to a signal, or to a lost member.
        """
        tf = import_tensorflow()
        answer: Future[Any] = Future()

        def ask() -> None:
            try:
                answer.set_result(self._total(tf.constant(values, tf.int64)).numpy())
            except Exception as error:
                answer.set_exception(error)

        threading.Thread(target=ask, name="team", daemon=True).start()  # a pool's would be waited for at the end
        while True:
            self._guard.check()
            with contextlib.suppress(TimeoutError):
                return answer.result(_POLL_INTERVAL_S)

    def check_same(self, what: str, value: int) -> None:
        """Make sure that all begin alike.

        Raises:
            RestartError: They do not, as when a file was seen by some and not yet by others.
        """
        values = [0] * self.size
        values[self.index] = value
        replicas = self.strategy.num_replicas_in_sync // self.size
        seen = sorted({int(each) // replicas for each in self._sum(values)})
        if len(seen) > 1:
            raise RestartError(f"the members of the cluster do not begin alike: {what} {', '.join(map(str, seen))}")


def join_team(
    cluster: Cluster, guard: PeerGuard, presence: Presence, timeouts: Timeouts, stop: StopFlag | None = None
) -> Team:
    """Wait for the others and make the strategy. TensorFlow must not have run an operation before.

    Raises:
        RestartError: Somebody is missing after `start_timeout_s`.
        Stopped: The stop flag was set.
    """
    tf = import_tensorflow()
    wait_for_peers(others_in_team(cluster), timeouts.start_timeout_s, stop)
    guard.start()
    with guard.bounded(_JOIN_TIMEOUT_S, "joining the others"):
        presence.close()  # TensorFlow's server takes the port over
        try:
            team = Team(cluster, multi_worker_mirrored_strategy(cluster, timeouts.stall_timeout_s), guard)
            team.agree(False)
        except tf.errors.OpError as error:
            raise RestartError(f"{cluster.me.name}: cannot join the others: {reason_of(error)}") from error
    log.info("%s: the cluster is complete", cluster.me.name)
    return team


class Follower:
    """What `follow` gives: the way into the team."""

    def __init__(self, cluster: Cluster, model_dir: Path, goal: str, timeouts: Timeouts) -> None:
        self._cluster, self._model_dir, self._timeouts = cluster, model_dir, timeouts
        self._watch = Watch(cluster, read_status(model_dir), goal, timeouts)
        self._presence = Presence(cluster.me)
        self._guard = PeerGuard(others_in_team(cluster), ())
        self.team: Team | None = None

    def join(self) -> Team | None:
        """Wait until the chief gathers its team, and join it; None where it ends well without one.

        Raises:
            RestartError: The chief does not come, or somebody else is missing.
            MlcoreError: The run failed for good.
        """
        while True:
            # Asked in this order, a chief that answers has written its status: it does so before it opens its port.
            answers = self._watch.chief_answers()
            status = read_status(self._model_dir)
            if self._watch.is_over(status):
                return None
            if answers and status is not None and status.state == "gathering":
                break
            time.sleep(_POLL_INTERVAL_S)
        self.team = join_team(self._cluster, self._guard, self._presence, self._timeouts)
        return self.team

    def wait_until_done(self) -> None:
        """Wait for the chief's word that it is done.

        Raises:
            RestartError: The chief is gone.
            MlcoreError: The run failed for good.
        """
        self._guard.stop()
        while not self._watch.is_over(read_status(self._model_dir)):
            time.sleep(_POLL_INTERVAL_S)

    def last_word(self, timeout_s: float) -> State | None:
        """How the chief's run went on after the team's last step: the state that it leaves behind, if any.

        To be asked before this process ends, too, which would tear the chief's last step.

        Raises:
            MlcoreError: The run failed for good.
        """
        self._guard.stop()
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            status = read_status(self._model_dir)
            if status is not None and status.state not in ("starting", "running", "gathering"):
                return "done" if self._watch.is_over(status) else status.state
            time.sleep(_POLL_INTERVAL_S)
        return None

    def close(self) -> None:
        """Watch nobody, and free the port."""
        self._guard.stop()
        self._presence.close()


@contextlib.contextmanager
def follow(cluster: Cluster, model_dir: Path, *, goal: str, timeouts: Timeouts) -> Iterator[Follower]:
    """A follower's run. SIGTERM must raise, but for where the steps are (`raise_on_stop`, `stop_flag`).

    Leaving the block it waits until the chief is done. Where the team breaks up because the chief is, that is no error.

    Args:
        cluster: The cluster, of which this process is not the chief.
        model_dir: Model directory, shared by all members.
        goal: What the job is for (`goal_of`).
        timeouts: Bounds of waiting.

    Raises:
        RestartError: The own port stays taken; another member is lost; the chief is gone.
        MlcoreError: The run failed for good.
    """
    wait_for_own_port(cluster.me, OWN_PORT_TIMEOUT_S)
    follower = Follower(cluster, model_dir, goal, timeouts)
    try:
        try:
            yield follower
        except Stopped:
            if follower.team is not None and follower.team.agreed:
                follower.last_word(_SAVING_S)
            raise
        except Exception as error:
            if not (meaning := meaning_of(error, follower.team, others_in_team(cluster))):
                raise
            if follower.team is None or (state := follower.last_word(_LAST_WORD_S)) not in ("done", "stopped"):
                raise meaning from error
            if state == "stopped":
                raise Stopped from error
        follower.wait_until_done()
        code = 0
    except BaseException as error:
        code = exit_code_of(error)
        raise
    finally:
        follower.close()
        if follower.team is not None and code:
            end_without_clean_up(code)
    log.info("%s: the chief is done", cluster.me.name)


def meaning_of(error: BaseException, team: Team | None, others: Sequence[Member]) -> RestartError | None:
    """The error where it means that the team broke up; None for any other."""
    if isinstance(error, RestartError):
        return error
    if team is None or isinstance(error, Stopped):
        return None
    errors = import_tensorflow().errors
    gone = errors.UnavailableError | errors.AbortedError | errors.CancelledError | errors.DeadlineExceededError
    for each in (error, error.__cause__):  # a trainer may have taken it for a directory that cannot be written
        if isinstance(each, gone) or (isinstance(each, errors.OpError) and "Collective ops is aborted" in str(each)):
            lines = [line for line in str(each).splitlines() if "aborted by" in line] or str(each).splitlines()
            names = ", ".join(member.name for member in others)
            return RestartError(f"the cluster has broken up, one of {names} is lost: {lines[0].strip()[:200]}")
    return None
