"""The chief's training loop under parameter servers: closures for the workers, a few at a time.

The loop never calls TensorFlow's `join`, which waits for ever for a worker that was stopped. It keeps a window of
closures in flight, goes on without a worker that does not answer, and ends with `RestartError` where it cannot go on.
"""

import contextlib
import functools
import logging
import statistics
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mlcore.cluster.config import Cluster, Member
from mlcore.cluster.guard import PeerGuard
from mlcore.cluster.leaving import let_go, who_is_leaving
from mlcore.cluster.ledger import Ledger, Work
from mlcore.cluster.tensorflow import import_tensorflow, reason_of
from mlcore.runtime.errors import RestartError
from mlcore.runtime.signals import StopFlag

log = logging.getLogger(__name__)

# Closures in flight beyond one for each worker: enough that no worker waits for the chief, few enough that a stop
# drains in seconds.
SPARE_CLOSURES = 2
# A closure that takes this many times as long as others do has hung, even if its worker still answers.
_HUNG_FACTOR = 20
_HUNG_LEAST_S = 600.0
# A worker that has left is gone or back after this time; what it is given while it is gone TensorFlow puts back.
_LEAVING_S = 15.0
_POLL_INTERVAL_S = 0.5
# Elements of an initial value that is sent to a parameter server sooner than the server answers that it has made it.
_SMALL_VALUE = 1 << 16


class Coordinator:
    """Schedules training steps on the workers of a cluster.

    Args:
        strategy: A ParameterServerStrategy.
        cluster: The cluster.
        guard: Watches the servers.
        model_dir: Where workers leave word that they leave.
        stall_timeout_s: A worker that does not answer for so long is left out; a run in which nothing is finished for
            so long, and somebody does not answer, is ended.
    """

    def __init__(
        self, strategy: Any, cluster: Cluster, guard: PeerGuard, model_dir: Path, stall_timeout_s: float = 30.0
    ) -> None:
        self._tf = import_tensorflow()
        self.strategy = strategy
        self.workers = cluster.of("worker")
        self._coordinator = self._tf.distribute.coordinator.ClusterCoordinator(strategy)
        self._ledger = Ledger(self._coordinator)
        self._guard, self._model_dir, self._stall_timeout_s = guard, model_dir, stall_timeout_s
        self._here = f"/job:{cluster.role}/replica:0/task:{cluster.index}/device:CPU:0"
        self._durations: deque[float] = deque(maxlen=50)
        self._leaving: dict[Member, float] = {}
        self._named: set[Member] = set()
        self._concrete: dict[tuple[int, ...], tuple[Any, Any, Sequence[Any]]] = {}

    @property
    def steps_by_worker(self) -> Counter[str]:
        """Steps that each worker (`worker 0`, `worker 1`) has finished since this process began."""
        done = self._ledger.steps_by_worker
        return Counter({f"{worker.role} {worker.index}": done[worker.index] for worker in self.workers})

    @contextlib.contextmanager
    def without_waiting(self) -> Iterator[None]:
        """Send operations off in the block without waiting for the answer to each; errors may come at its end.

        For variables, which are made one by one on parameter servers, a few operations each.
        """
        execution = self._tf.config.experimental
        execution.set_synchronous_execution(False)
        try:
            with self._tf.variable_creator_scope(self._make_small_values_here):
                yield
        finally:
            execution.set_synchronous_execution(True)

    def _make_small_values_here(self, next_creator: Callable[..., Any], **options: Any) -> Any:
        """A variable's initial value, made by the chief.

        A variable asks for the shape of its initial value. Made on the parameter server, that is an answer to wait for,
        hundreds of times.
        """
        initial = options.get("initial_value")
        if callable(initial):
            shape = options.get("shape")
            if shape is None and isinstance(initial, functools.partial):
                shape = initial.keywords.get("shape")
            elements = self._tf.TensorShape(shape).num_elements()
            if elements is not None and elements <= _SMALL_VALUE:

                def value(*arguments: Any, **more: Any) -> Any:
                    with self._tf.device(self._here):
                        return initial(*arguments, **more)

                options["initial_value"] = value
        return next_creator(**options)

    def per_worker_iterator(self, make_dataset: Callable[[Any, Any], Any]) -> Any:
        """An iterator on each worker over a dataset of its own, an input of `run`.

        Args:
            make_dataset: Called as make_dataset(input_context, generation) in a graph; gives the dataset. The
                context's `input_pipeline_id` is a tensor, the worker's index of `num_input_pipelines`; `generation` is
                a tensor too and grows each time that a worker has to begin again, so that it can shuffle otherwise.
        """
        tf = self._tf

        def dataset_of(index: Any, generation: Any) -> Any:
            context = tf.distribute.InputContext(len(self.workers), index, 1)
            return make_dataset(context, generation)

        number = tf.TensorSpec([], tf.int64)
        concrete = tf.function(dataset_of, autograph=False).get_concrete_function(number, number)
        generations: Counter[int] = Counter()

        def begin(index: int) -> Any:
            generations[index] += 1
            return iter(concrete(tf.constant(index, tf.int64), tf.constant(generations[index] - 1, tf.int64)))

        return self._on_each_worker(begin, tf.data.IteratorSpec(concrete.structured_outputs.element_spec))

    def per_worker_copy(self, tensor: Any) -> Any:
        """A copy of a tensor on each worker, an input of `run`."""
        return self._on_each_worker(lambda _: self._tf.identity(tensor), self._tf.TensorSpec.from_tensor(tensor))

    def _on_each_worker(self, make: Callable[[int], Any], spec: Any) -> Any:
        """What `make(index)` gives on each worker; made again on a worker that comes back.

        The public way, `create_per_worker_dataset`, gives all workers the same dataset and no number.
        """
        from tensorflow.python.distribute.coordinator.values import PerWorkerDistributedIterator

        values = []
        for worker in self._coordinator._cluster.workers:
            value = worker.create_resource(lambda index=worker.worker_index: make(index))
            value._type_spec = spec
            values.append(value)
        return PerWorkerDistributedIterator(tuple(values))

    def run(
        self,
        function: Any,
        inputs: Sequence[Any],
        steps: int,
        *,
        first: int = 0,
        steps_per_closure: int = 1,
        stop: StopFlag | None = None,
        on_result: Callable[[int, Any], None] | None = None,
    ) -> int:
        """Have the workers train for some steps, and wait until they have.

        Args:
            function: A tf.function of (*inputs, first, count) that makes `count` steps (int32) and gives what
                `on_result` wants; `first` (int64) counts the steps that were handed out before.
            inputs: From `per_worker_iterator` and `per_worker_copy`.
            steps: Steps in all.
            first: Number of the first step.
            steps_per_closure: Steps that a worker makes for each message from the chief.
            stop: When it is set nothing more is scheduled, and the call returns after what is in flight.
            on_result: Called as on_result(steps, result) for each closure, in the order in which they finish.

        Returns:
            Steps that were made; fewer than asked for after a stop.

        Raises:
            RestartError: A parameter server is lost, or no worker can go on.
        """
        tf, concrete = self._tf, self._trace(function, inputs)
        done, progress_at = 0, time.monotonic()
        window = len(self.workers) + SPARE_CLOSURES
        while True:
            self._guard.check()
            try:
                finished, unfinished = self._ledger.take_news()
            except (tf.errors.OpError, RestartError) as error:
                raise self.translate(error) from error
            for work in finished:
                done += work.steps
                progress_at = time.monotonic()
                if work.taken_at:
                    self._durations.append(progress_at - work.taken_at)
                if on_result is not None:
                    on_result(work.steps, work.value.fetch())
            self._let_leavers_go()
            in_flight = self._without_stopped_workers(unfinished)
            stopping = stop is not None and stop.is_set()
            planned = done + sum(work.steps for work in in_flight)
            while not stopping and planned < steps and len(in_flight) < window:
                size = min(steps_per_closure, steps - planned)
                work = self._schedule(concrete, inputs, first + planned, size)
                in_flight.append(work)
                planned += size
            if not in_flight:
                return done
            self._raise_if_stuck(progress_at, in_flight)
            with self._ledger.changed:
                if not self._ledger.has_news():
                    self._ledger.changed.wait(_POLL_INTERVAL_S)

    def _trace(self, function: Any, inputs: Sequence[Any]) -> Any:
        """The function for these inputs. Traced apart from scheduling, so that workers get their inputs meanwhile."""
        tf, key = self._tf, (id(function), *map(id, inputs))
        if key not in self._concrete:
            specs = [each._values[0]._type_spec for each in inputs]
            with self.strategy.scope():  # slot variables are made while it is traced
                concrete = function.get_concrete_function(
                    *specs, tf.TensorSpec([], tf.int64), tf.TensorSpec([], tf.int32)
                )
            self._concrete[key] = concrete, function, inputs  # kept, so that no other object gets their ids
        return self._concrete[key][0]

    def _schedule(self, concrete: Any, inputs: Sequence[Any], first: int, size: int) -> Work:
        tf = self._tf
        arguments = (*inputs, tf.constant(first, tf.int64), tf.constant(size, tf.int32))
        try:
            return self._ledger.add(lambda: self._coordinator.schedule(concrete, args=arguments), size)
        except tf.errors.OpError as error:
            raise self.translate(error) from error

    def _without_stopped_workers(self, unfinished: list[Work]) -> list[Work]:
        """The closures to wait for: those of a worker that does not answer are written off."""
        in_flight = []
        for work in unfinished:
            worker = None if work.worker is None else self.workers[work.worker]
            if worker is not None and self._guard.missing_for(worker) >= self._stall_timeout_s:
                if not work.written_off:
                    work.written_off = True
                    log.warning(
                        "%s: %s for %.0f s; going on without it and without the %d steps that it has",
                        worker.name, self._guard.trouble(worker), self._guard.missing_for(worker), work.steps,
                    )  # fmt: skip
                    self._named.add(worker)
            elif work.written_off and worker is not None and not self._guard.missing_for(worker):
                work.written_off = False
            if not work.written_off:
                in_flight.append(work)
        for worker in list(self._named):
            if not self._guard.missing_for(worker):
                self._named.discard(worker)
                log.info("%s answers again", worker.name)
        return in_flight

    def _raise_if_stuck(self, progress_at: float, in_flight: list[Work]) -> None:
        """Nothing is finished any more, and it is not for slowness."""
        quiet_s = time.monotonic() - progress_at
        if quiet_s < self._stall_timeout_s:
            return
        missing = [worker for worker in self.workers if self._guard.missing_for(worker) >= self._stall_timeout_s]
        if len(missing) == len(self.workers):
            raise RestartError(f"no worker is left: {self._guard.diagnose()}")
        typical_s = statistics.median(self._durations) if self._durations else 0.0
        if quiet_s >= max(_HUNG_LEAST_S, _HUNG_FACTOR * typical_s, self._stall_timeout_s):
            names = sorted({self.workers[work.worker].name for work in in_flight if work.worker is not None})
            who = self._guard.diagnose() or f"all answer; at work: {', '.join(names) or 'nobody'}"
            raise RestartError(f"no closure was finished for {quiet_s:.0f} s: {who}")

    def _let_leavers_go(self) -> None:
        """Workers that were asked to stop get nothing more, and their answer once they are idle."""
        now = time.monotonic()
        for worker in who_is_leaving(self._model_dir, self.workers):
            if worker not in self._leaving:
                log.info("%s wants to leave: it gets nothing more", worker.name)
            self._leaving[worker] = now
        self._leaving = {worker: asked for worker, asked in self._leaving.items() if now - asked < _LEAVING_S}
        self._ledger.hold_back([worker.index for worker in self._leaving])
        for worker in self._leaving:
            if self._ledger.is_idle(worker.index):
                let_go(self._model_dir, worker)

    def translate(self, error: BaseException) -> BaseException:
        """What an error of TensorFlow means: that somebody is gone, or itself where all answer."""
        if isinstance(error, RestartError):
            return error
        trouble = self._guard.diagnose()
        errors = self._tf.errors
        if trouble:
            return RestartError(f"a member of the cluster is lost: {trouble}")
        gone = errors.UnavailableError | errors.AbortedError | errors.CancelledError | errors.DeadlineExceededError
        if isinstance(error, gone) or "context_id" in str(error):
            return RestartError(f"the cluster has lost its state: {reason_of(error)}")
        return error
