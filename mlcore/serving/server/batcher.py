"""Requests put together: one call of the model for many of them, from a queue that is bounded. No TensorFlow.

Requests wait in lanes; those of a lane fit together: same version, signature, types and shapes, so that pictures of
different sizes never mix. A batch goes to a free worker thread when it is full, when as many requests came for it as
came together of late, or `max_delay_s` after its first: a lone client never waits, a busy server fills its batches.

Everything but the call itself happens in the event loop's thread.
"""

import asyncio
import contextlib
import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mlcore.serving.server.errors import Code, RequestError, too_many
from mlcore.serving.server.signature import Array, Arrays

_REMEMBERED = 16  # batches

Run = Callable[[Arrays], dict[str, Array]]


@dataclass(eq=False, slots=True)
class _Job:
    """A request in the queue."""

    inputs: Arrays
    examples: int
    result: "asyncio.Future[dict[str, Array]]"


@dataclass(slots=True)
class _Lane:
    """Requests that fit together, the oldest first."""

    run: Run
    joinable: bool
    observe: Callable[[int], None]
    jobs: deque[_Job] = field(default_factory=deque)
    examples: int = 0
    due: float = 0.0


class Batcher:
    """Joins requests into batches and runs them in worker threads.

    Args:
        max_batch_size: Most examples of a batch; a request that has more goes alone, in parts of that size.
        max_delay_s: How long the first request of a batch that is not full waits for others, though a worker is free.
        max_queue: Most examples that wait; requests beyond are refused.
        max_bytes: Most bytes of all inputs that wait or run; requests beyond are refused.
        workers: Batches that run at once.
        timeout_s: Most time of a request, which can be given less.
        is_bad_input: Whether an exception is the fault of the inputs.
        message_of: What to tell the client of such an exception.
    """

    def __init__(
        self,
        *,
        max_batch_size: int,
        max_delay_s: float,
        max_queue: int,
        max_bytes: float = float("inf"),
        workers: int,
        timeout_s: float = float("inf"),
        is_bad_input: Callable[[BaseException], bool],
        message_of: Callable[[BaseException], str],
    ) -> None:
        self.max_batch_size = max_batch_size
        self.max_delay_s = max_delay_s
        self.max_queue = max_queue
        self.max_bytes = max_bytes
        self.held = 0  # bytes
        self.timeout_s = timeout_s
        self.waiting = 0
        self._is_bad_input = is_bad_input
        self._message_of = message_of
        self._lanes: OrderedDict[Hashable, _Lane] = OrderedDict()
        self._workers = self._free = workers
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="batch")
        self._timer: asyncio.TimerHandle | None = None
        self._scheduled = False
        self._expected = 1  # requests that will probably come together
        self._came: deque[int] = deque(maxlen=_REMEMBERED)  # requests of the last batches
        self._watched: dict[_Job, tuple[float, Hashable, _Lane]] = {}  # with the end of its time; the oldest first
        self._watching = False
        self._batches = 0

    async def call(
        self,
        key: Hashable,
        run: Run,
        inputs: Arrays,
        examples: int,
        *,
        joinable: bool,
        one_size: bool = False,
        timeout_s: float | None = None,
        observe: Callable[[int], None] = lambda size: None,
    ) -> dict[str, Array]:
        """The model's answer to a request.

        Args:
            key: What requests must have in common to go together, beside types and shapes of their inputs.
            run: Calls the model.
            inputs: The request's tensors, checked.
            examples: How many examples are in it.
            joinable: Whether it may go together with others.
            one_size: Whether all requests with this key have the same types and shapes, so that none need be compared.
            timeout_s: Most time that it may take; None: the most that a request may.
            observe: Told the number of examples of each batch.

        Raises:
            RequestError: The queue is full, the time is up, or the model refused the inputs.
        """
        weight = max(examples, 1)
        if self.waiting and self.waiting + weight > self.max_queue:
            raise RequestError(
                f"the queue is full: {self.waiting} of {self.max_queue} examples wait; try again later",
                Code.RESOURCE_EXHAUSTED,
            )
        size = _size(inputs)
        if self.held and self.held + size > self.max_bytes:
            raise too_many(self.held, self.max_bytes)
        self.held += size
        loop = asyncio.get_running_loop()
        job = _Job(inputs, examples, loop.create_future())
        lane_key: Hashable = key
        if not (joinable and examples):
            lane_key = job.result  # a lane of its own
        elif not one_size:
            lane_key = key, tuple([(name, value.dtype.char, value.shape[1:]) for name, value in inputs.items()])
        lane = self._lanes.get(lane_key)
        if lane is None:
            lane = self._lanes[lane_key] = _Lane(run, joinable and bool(examples), observe)
            lane.due = time.monotonic() + (self.max_delay_s if lane.joinable else 0.0)
        lane.jobs.append(job)
        lane.examples += weight
        self.waiting += weight
        if not self._scheduled:  # after the other requests that came in the same turn of the loop
            self._scheduled = True
            loop.call_soon(self._dispatch)
        timer = None
        if timeout_s is None or timeout_s >= self.timeout_s:
            self._watch(lane_key, lane, job)
        else:
            timer = loop.call_later(timeout_s, self._too_late, lane_key, lane, job, timeout_s)
        try:
            return await job.result
        except asyncio.CancelledError:  # its client is gone
            self._give_up(lane_key, lane, job)
            raise
        finally:
            if timer is not None:
                timer.cancel()
            self._watched.pop(job, None)
            self.held -= size
            del job  # an error's traceback has this frame, and would keep the request's tensors with it

    def _watch(self, key: Hashable, lane: _Lane, job: _Job) -> None:
        """End it after `timeout_s`. All have the same time, so one timer, for the oldest, does for all of them."""
        self._watched[job] = (time.monotonic() + self.timeout_s, key, lane)
        if not self._watching and math.isfinite(self.timeout_s):
            self._watching = True
            asyncio.get_running_loop().call_later(self.timeout_s, self._look)

    def _look(self) -> None:
        self._watching = False
        now = time.monotonic()
        for job, (end, key, lane) in list(self._watched.items()):  # the oldest first
            if end > now:
                self._watching = True
                asyncio.get_running_loop().call_later(end - now, self._look)
                return
            self._too_late(key, lane, job, self.timeout_s)

    def _too_late(self, key: Hashable, lane: _Lane, job: _Job, timeout_s: float) -> None:
        if not job.result.done():
            job.result.set_exception(RequestError(f"no answer within {timeout_s:g} s", Code.DEADLINE_EXCEEDED))
            self._give_up(key, lane, job)

    def _give_up(self, key: Hashable, lane: _Lane, job: _Job) -> None:
        """Free its place in the queue."""
        if job not in lane.jobs:
            return
        lane.jobs.remove(job)
        weight = max(job.examples, 1)
        lane.examples -= weight
        self.waiting -= weight
        if not lane.jobs and self._lanes.get(key) is lane:
            del self._lanes[key]

    def _dispatch(self) -> None:
        """Give batches that are due to free workers."""
        self._scheduled = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._free and self._lanes:
            now = time.monotonic()
            ready = [
                (lane.due, key)
                for key, lane in self._lanes.items()
                if lane.due <= now or lane.examples >= self.max_batch_size or len(lane.jobs) >= self._expected
            ]
            if not ready:
                due = min(lane.due for lane in self._lanes.values())
                self._timer = asyncio.get_running_loop().call_later(due - now, self._dispatch)
                return
            self._start(min(ready, key=lambda entry: entry[0])[1])

    def _start(self, key: Hashable) -> None:
        lane = self._lanes[key]
        jobs: list[_Job] = []
        examples = 0
        while lane.jobs and (not jobs or examples + lane.jobs[0].examples <= self.max_batch_size):
            job = lane.jobs.popleft()
            weight = max(job.examples, 1)
            lane.examples -= weight
            self.waiting -= weight
            if job.result.done():  # its client is gone, or its time is up
                continue
            jobs.append(job)
            examples += job.examples
        if lane.jobs:
            self._lanes.move_to_end(key)
            lane.due = time.monotonic()  # what is left waited already
        else:
            del self._lanes[key]
        if not jobs:
            return
        if lane.joinable:
            self._learn(len(jobs))
        lane.observe(examples)
        self._free -= 1
        loop = asyncio.get_running_loop()
        self._threads.submit(self._work, loop, lane, jobs)

    def _learn(self, came: int) -> None:
        """Set how many requests the next batch waits for, from how many came for the last ones.

        A lone client has no two requests at once, so it never waits. Now and then a batch waits the whole delay, to see
        whether more would come. (Half of them at a time, so that the model works while the others are read, was no
        faster with 32 clients, and as soon as the model is free a quarter to a half slower: calls cost more.)
        """
        self._came.append(came)
        self._batches += 1
        most = max(self._came)
        self._expected = self.max_batch_size if most > 1 and self._batches % _REMEMBERED == 0 else most

    def _work(self, loop: asyncio.AbstractEventLoop, lane: _Lane, jobs: list[_Job]) -> None:
        """In a worker thread: call the model, hand the answers back."""
        answers: list[Any]
        try:
            answers = self._answers(lane, jobs)
        except BaseException as error:  # a bug in here must not leave requests without an answer
            answers = [error] * len(jobs)
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(self._finish, jobs, answers)

    def _finish(self, jobs: Sequence[_Job], answers: Sequence[Any]) -> None:
        self._free += 1
        for job, answer in zip(jobs, answers, strict=True):
            if job.result.done():
                continue
            if isinstance(answer, BaseException):
                job.result.set_exception(answer)
            else:
                job.result.set_result(answer)
        self._dispatch()

    def _answers(self, lane: _Lane, jobs: Sequence[_Job]) -> list[Any]:
        """An answer or an error for each request; one that the model refuses does not spoil the others."""
        try:
            if len(jobs) == 1:
                return [self._alone(lane, jobs[0])]
            inputs = {name: np.concatenate([job.inputs[name] for job in jobs]) for name in jobs[0].inputs}
            total = sum(job.examples for job in jobs)
            outputs = lane.run(inputs)
            if all(value.ndim and len(value) == total for value in outputs.values()):
                return _apart(outputs, [job.examples for job in jobs])
        except Exception as error:
            if len(jobs) == 1:
                return [self._refusal(error)]
            if not self._is_bad_input(error):
                return [error] * len(jobs)
        middle = len(jobs) // 2  # halves find a bad one in few calls
        return [*self._answers(lane, jobs[:middle]), *self._answers(lane, jobs[middle:])]

    def _alone(self, lane: _Lane, job: _Job) -> dict[str, Array]:
        if not lane.joinable or job.examples <= self.max_batch_size:
            return lane.run(job.inputs)
        parts = [
            lane.run({name: value[start : start + self.max_batch_size] for name, value in job.inputs.items()})
            for start in range(0, job.examples, self.max_batch_size)
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _refusal(self, error: Exception) -> Exception:
        return RequestError(self._message_of(error)) if self._is_bad_input(error) else error

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing runs."""
        return not self.waiting and self._free == self._workers

    def close(self) -> None:
        """End the worker threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _size(inputs: Arrays) -> int:
    """Bytes of inputs; of texts those of the texts."""
    size = 0
    for value in inputs.values():
        size += value.nbytes if value.dtype.char != "O" else sum(map(len, value.flat))
    return size


def _apart(outputs: Arrays, sizes: Sequence[int]) -> list[dict[str, Array]]:
    """The outputs of a batch, taken apart into those of its requests."""
    answers = []
    start = 0
    for size in sizes:
        answers.append({name: value[start : start + size] for name, value in outputs.items()})
        start += size
    return answers
