"""When the work of a member that is not the chief is over. No TensorFlow.

| what the member sees | how it ends |
| --- | --- |
| the chief's run is done | 0, within two seconds |
| the chief's run failed for good (bad data, wrong use, a bug) | with the chief's exit code |
| the chief has not answered on its port for `chief_timeout_s` | 138: start again |
| no chief has come within `start_timeout_s` | 138 |

A chief that is killed and started again finds the others where they were, and uses them again.
"""

import logging
import time

from mlcore.cluster.config import Cluster
from mlcore.cluster.peers import trouble_with
from mlcore.cluster.status import Status
from mlcore.cluster.timeouts import Timeouts
from mlcore.runtime.errors import EXIT_BUG, DataError, MlcoreError, RestartError, UsageError

log = logging.getLogger(__name__)

_PROBE_INTERVAL_S = 5.0
# A member that comes when its job is done already waits this long for a new chief before it believes the marker.
_LATE_GRACE_S = 20.0


class Watch:
    """Watches the chief: what it says in the model directory, and whether its server answers.

    Args:
        cluster: The cluster.
        before: What the model directory said before this member could serve anybody: an end of an earlier run.
        goal: What the job is for (`goal_of`).
        timeouts: `start_timeout_s` to wait for a first chief, `chief_timeout_s` for which it may be gone.
    """

    def __init__(self, cluster: Cluster, before: Status | None, goal: str, timeouts: Timeouts) -> None:
        self._chief = cluster.chief
        self._earlier = before.run if before and before.state in ("done", "failed") else None
        self._done_before = before is not None and before.state == "done" and before.goal == goal
        self._timeouts = timeouts
        self._started = self._asked = self._looked = time.monotonic()
        self._gone_s = 0.0
        self._chief_came = False

    def chief_answers(self) -> bool:
        """Whether the chief's server answers now."""
        if self._chief is None or trouble_with(self._chief) is not None:
            return False
        if not self._chief_came:
            log.info("the chief is there")
        self._chief_came, self._gone_s = True, 0.0
        return True

    def may_read(self, status: Status | None) -> bool:
        """Whether what is in the model directory is of the chief's present run, or of one that it goes on with."""
        return status is not None and status.state != "starting" and status.run != self._earlier

    def is_over(self, status: Status | None) -> bool:
        """Whether the run is done, given what the chief last said. To be asked every second or so.

        Raises:
            RestartError: The chief is gone.
            MlcoreError: The run failed for good.
        """
        if status is not None and status.run != self._earlier:
            if status.state == "done":
                return True
            if status.state == "failed":
                raise _failure(status)
        now = time.monotonic()
        # Time in which nobody looked (a long evaluation) says nothing about the chief.
        self._gone_s += min(now - self._looked, _PROBE_INTERVAL_S)
        self._looked = now
        if now - self._asked >= _PROBE_INTERVAL_S:
            self._asked = now
            self.chief_answers()
        if not self._chief_came and self._done_before and now - self._started >= _LATE_GRACE_S:
            return True
        timeouts = self._timeouts
        if self._gone_s >= (timeouts.chief_timeout_s if self._chief_came else timeouts.start_timeout_s):
            name = self._chief.name if self._chief else "the chief"
            raise RestartError(f"{name} has not answered for {self._gone_s:.0f} s")
        return False


def _failure(status: Status) -> MlcoreError:
    kinds = {kind.exit_code: kind for kind in (UsageError, DataError)}
    error = kinds.get(status.exit_code, MlcoreError)(f"the chief failed: {status.message}")
    error.exit_code = status.exit_code or EXIT_BUG
    return error
