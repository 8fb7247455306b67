"""A pod and its kubelet: init containers, the container, its restarts in place, and the end of both."""

import logging
import threading
import time
from collections.abc import Callable, Sequence

from mlcore.kubeflow.local.console import Console, Follower
from mlcore.kubeflow.local.engine import Engine
from mlcore.kubeflow.local.plan import ContainerPlan, PodPlan
from mlcore.kubeflow.local.rules import Phase, Replica, container_restarts, restart_delay_s
from mlcore.runtime.errors import MlcoreError

log = logging.getLogger(__name__)

# What Kubernetes records for a container whose command cannot be started.
_START_ERROR = 128
_KILLED = 137
_PAUSE_S = 0.5
# A container that ran for so long begins with short delays again.
_STEADY_S = 600.0
_END_TIMEOUT_S = 30.0


class Pod:
    """One pod, from its creation to its end; it lives in a thread of its own.

    Args:
        plan: What it is made of.
        engine: The engine.
        console: Where its containers print.
        network: Options of `docker create` for network and names.
        labels: Options for what the engine makes beside containers.
        changed: Called after each change of its state.
    """

    def __init__(
        self,
        plan: PodPlan,
        engine: Engine,
        console: Console,
        *,
        network: Sequence[str],
        labels: Sequence[str],
        changed: Callable[[], None],
    ) -> None:
        self.plan = plan
        self.phase: Phase = "Pending"
        self.exit_code: int | None = None
        self.restarts = 0
        self.gone = False  # somebody removed its container: to the operator a pod that was deleted
        self.error: Exception | None = None
        self.ended_at: float | None = None
        self._engine, self._console, self._changed = engine, console, changed
        self._network, self._labels = tuple(network), tuple(labels)
        self._stopping = threading.Event()
        self._left = threading.Event()
        self._lock = threading.Lock()  # a container is started or stopped, never both
        self._running: str | None = None
        self._follower: Follower | None = None
        self._thread = threading.Thread(target=self._live, name=plan.name, daemon=True)
        self._thread.start()

    @property
    def replica(self) -> Replica:
        """The pod as the operator sees it."""
        return Replica(self.plan.type, self.plan.index, self.phase, self.exit_code, self.restarts)

    @property
    def containers(self) -> list[str]:
        """Names of its containers."""
        return [self.plan.name, *(self._init_name(container) for container in self.plan.init)]

    def _init_name(self, container: ContainerPlan) -> str:
        return f"{self.plan.name}.{container.name}"

    def _live(self) -> None:
        try:
            self._engine.create_volumes(self.plan.volumes, self._labels, self.plan.main.image)
            phase = self._life()
        except Exception as error:
            # The operator's thread raises it; a bug of ours keeps its traceback that way.
            self.error = error
            phase = "Failed"
        if self._left.is_set():
            return
        self.ended_at = time.monotonic()
        self.phase = phase
        self._changed()

    def _life(self) -> Phase:
        for container in self.plan.init:
            name = self._init_name(container)
            code = self._until_it_stays_ended(container, name)
            if code != 0 or self._stopping.is_set():
                return "Failed"
            self._engine.remove(name)
        self.exit_code = self._until_it_stays_ended(self.plan.main, self.plan.name)
        return "Succeeded" if self.exit_code == 0 else "Failed"

    def _until_it_stays_ended(self, container: ContainerPlan, name: str) -> int | None:
        """The exit code after the last restart in place; None where the container was removed or never ran."""
        quick = 0
        while True:
            started = time.monotonic()
            code = self._run(container, name)
            if code is None or self._stopping.is_set():
                return code
            # An init container that succeeded is through under any policy.
            if not container_restarts(self.plan.restart_policy, code) or (name != self.plan.name and code == 0):
                return code
            quick = 0 if time.monotonic() - started >= _STEADY_S else quick
            delay = restart_delay_s(quick)
            quick += 1
            log.info("%s: ended with %d; restarted in place%s", name, code, f" in {delay:.0f} s" if delay else "")
            self.restarts += 1
            self.phase = "Pending" if delay else self.phase
            self._changed()
            if self._stopping.wait(delay):
                return code

    def _run(self, container: ContainerPlan, name: str) -> int | None:
        with self._lock:
            if self._stopping.is_set():
                return None
            self._engine.remove(name)
            self._engine.create(name, container, self._network)
            self._running = name
            trouble = self._engine.start(name)
        if trouble:
            log.warning("%s: cannot be started: %s", name, trouble)
            return _START_ERROR
        if name == self.plan.name:
            self.phase = "Running"
            self._changed()
        code = self._follow(name)
        self._running = None
        return code

    def _follow(self, name: str) -> int | None:
        """Print until the container has ended; its exit code, or None where it was removed."""
        since = 0.0
        while True:
            self._follower = Follower(self._engine, name, self.plan.name, self._console, since)
            self._follower.wait()
            since = time.time()
            if self._left.is_set():
                return None
            state = self._engine.state(name)
            if state is not None and not state.running and state.exit_code == _KILLED:
                time.sleep(_PAUSE_S)  # `docker rm --force` kills before it removes
                state = self._engine.state(name)
            if state is None:
                self.gone = not self._stopping.is_set()
                return None
            if not state.running:
                if state.reason:
                    log.warning("%s: %s", name, state.reason)
                return state.exit_code
            time.sleep(_PAUSE_S)  # the engine ended the stream, not the container

    def stop(self, grace_s: int | None = None) -> None:
        """SIGTERM, and SIGKILL after the grace period; returns when it has ended."""
        self._stopping.set()
        with self._lock:
            running = self._running
        if running is not None:
            self._engine.stop(running, self.plan.grace_s if grace_s is None else grace_s)
        self._thread.join(_END_TIMEOUT_S)

    def leave(self) -> None:
        """Look after it no longer; its container goes on."""
        self._left.set()
        if self._follower is not None:
            self._follower.close()

    def delete(self, grace_s: int | None = None) -> None:
        """Stop it and remove what it was made of."""
        self.stop(grace_s)
        self._engine.remove(*self.containers)
        self._engine.remove_volumes(*(volume.name for volume in self.plan.volumes))


def error_of(pods: Sequence[Pod]) -> Exception | None:
    """The first trouble that no rule of the operator covers, such as an option that the engine refuses."""
    for pod in pods:
        if pod.error is not None and not isinstance(pod.error, MlcoreError):
            return pod.error
    return next((pod.error for pod in pods if pod.error is not None), None)
