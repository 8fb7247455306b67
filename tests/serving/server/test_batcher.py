"""The queue with a model of numpy: what is joined, what is refused, and that no request waits for ever."""

import asyncio
import threading
import time

import numpy as np
import pytest

from mlcore.serving.server.batcher import Batcher
from mlcore.serving.server.errors import Code, RequestError


class BadInput(ValueError):
    """What the model below raises for a negative number."""


class Doubler:
    """A model that doubles numbers, remembers its calls and refuses negative numbers."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.calls: list[int] = []
        self.seconds = seconds
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, inputs):
        self.calls.append(len(inputs["x"]))
        self.gate.wait(10)
        time.sleep(self.seconds)
        if (inputs["x"] < 0).any():
            raise BadInput("negative")
        return {"y": inputs["x"] * 2}


def make(**options):
    defaults = {"max_batch_size": 8, "max_delay_s": 0.0, "max_queue": 100, "workers": 1}
    return Batcher(**defaults | options, is_bad_input=lambda error: isinstance(error, BadInput), message_of=str)


def values(*numbers, width=3):
    return {"x": np.array([[number] * width for number in numbers], np.float32).reshape(len(numbers), width)}


async def ask(batcher, model, *numbers, key="k", width=3, joinable=True):
    outputs = await batcher.call(key, model, values(*numbers, width=width), len(numbers), joinable=joinable)
    assert outputs["y"].shape == (len(numbers), width)
    return outputs["y"][:, 0].tolist()


async def ask_behind(batcher, model, asking, count=None):
    """Start these while the model is busy, so that they wait together."""
    model.gate.clear()
    first = asyncio.create_task(ask(batcher, model, 0, key="first"))
    await asyncio.sleep(0.05)
    tasks = [asyncio.create_task(coroutine) for coroutine in asking]
    await asyncio.sleep(0.05)
    model.gate.set()
    await first
    return await asyncio.gather(*tasks, return_exceptions=True)


def test_each_request_gets_its_own_answer():
    async def main():
        batcher, model = make(), Doubler()
        answers = await asyncio.gather(*(ask(batcher, model, n, n + 1) for n in range(50)))
        assert answers == [[2 * n, 2 * n + 2] for n in range(50)]
        assert max(model.calls) <= 8
        assert sum(model.calls) == 100
        assert batcher.idle

    asyncio.run(main())


def test_requests_that_wait_are_joined():
    async def main():
        batcher, model = make(), Doubler()
        answers = await ask_behind(batcher, model, [ask(batcher, model, n) for n in range(1, 9)])
        assert answers == [[2.0 * n] for n in range(1, 9)]
        assert model.calls == [1, 8]

    asyncio.run(main())


def test_other_sizes_and_other_versions_are_never_joined():
    async def main():
        batcher, model = make(), Doubler()
        asking = [ask(batcher, model, n, width=2 + n % 2, key=n % 4 < 2) for n in range(8)]
        await ask_behind(batcher, model, asking)
        assert model.calls == [1, 2, 2, 2, 2]

    asyncio.run(main())


def test_what_cannot_be_joined_goes_alone():
    async def main():
        batcher, model = make(), Doubler()
        await ask_behind(batcher, model, [ask(batcher, model, n, joinable=False) for n in range(4)])
        assert model.calls == [1, 1, 1, 1, 1]

    asyncio.run(main())


def test_a_bad_request_spoils_no_other():
    async def main():
        batcher, model = make(), Doubler()
        answers = await ask_behind(batcher, model, [ask(batcher, model, n) for n in (1, 2, -3, 4, 5, 6, 7)])
        assert [answer for answer in answers if isinstance(answer, list)] == [[2], [4], [8], [10], [12], [14]]
        (refused,) = (answer for answer in answers if not isinstance(answer, list))
        assert isinstance(refused, RequestError)
        assert (refused.code, str(refused)) == (Code.INVALID_ARGUMENT, "negative")

    asyncio.run(main())


def test_a_failure_that_is_not_the_inputs_fault_is_not_tried_again():
    calls = []

    def broken(inputs):
        calls.append(len(inputs["x"]))
        raise RuntimeError("out of memory")

    async def main():
        batcher, model = make(), Doubler()
        answers = await ask_behind(batcher, model, [ask(batcher, broken, n) for n in range(4)])
        assert [str(answer) for answer in answers] == ["out of memory"] * 4
        assert calls == [4]
        assert await ask(batcher, model, 1) == [2]

    asyncio.run(main())


def test_outputs_without_a_row_for_each_example_are_asked_for_one_by_one():
    def summed(inputs):
        return {"y": inputs["x"].sum(0, keepdims=True) * np.ones((1, 3), np.float32)}

    async def main():
        batcher = make()
        answers = await ask_behind(batcher, Doubler(), [ask(batcher, summed, n) for n in (3, 4, 5)])
        assert answers == [[3], [4], [5]]

    asyncio.run(main())


def test_a_full_queue_refuses_and_recovers():
    async def main():
        batcher, model = make(max_queue=3), Doubler()
        answers = await ask_behind(batcher, model, [ask(batcher, model, n) for n in range(1, 6)])
        assert answers[:3] == [[2], [4], [6]]
        assert [(answer.code, "3 of 3 examples wait" in str(answer)) for answer in answers[3:]] == [
            (Code.RESOURCE_EXHAUSTED, True)
        ] * 2
        assert await ask(batcher, model, 1, 2, 3) == [2, 4, 6]

    asyncio.run(main())


def test_more_examples_than_a_batch_holds_go_in_parts():
    async def main():
        batcher, model = make(max_batch_size=4), Doubler()
        assert await ask(batcher, model, *range(10)) == [2.0 * n for n in range(10)]
        assert model.calls == [4, 4, 2]

    asyncio.run(main())


def test_no_examples_are_an_answer_without_rows():
    async def main():
        assert await ask(make(), Doubler()) == []

    asyncio.run(main())


def test_a_request_given_up_is_not_run():
    async def main():
        batcher, model = make(), Doubler()

        async def give_up():
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await ask(batcher, model, 7)

        await ask_behind(batcher, model, [give_up()])
        assert model.calls == [1]
        assert batcher.waiting == 0
        assert batcher.idle

    asyncio.run(main())


def test_requests_given_up_leave_their_places_to_others():
    async def main():
        batcher, model = make(max_queue=3), Doubler()
        model.gate.clear()
        running = asyncio.create_task(ask(batcher, model, 0))
        await asyncio.sleep(0.05)
        waiting = [asyncio.create_task(ask(batcher, model, n, key=n % 2)) for n in range(3)]
        await asyncio.sleep(0.05)
        assert batcher.waiting == 3
        for task in waiting:
            task.cancel()
        await asyncio.sleep(0)
        assert batcher.waiting == 0
        again = [asyncio.create_task(ask(batcher, model, n)) for n in range(3)]
        await asyncio.sleep(0.05)
        model.gate.set()
        assert await asyncio.gather(running, *again) == [[0], [0], [2], [4]]
        assert batcher.idle

    asyncio.run(main())


def test_a_lone_request_does_not_wait_for_others():
    async def main():
        batcher = make(max_delay_s=5.0)
        started = time.monotonic()
        assert await ask(batcher, Doubler(), 1) == [2]
        assert time.monotonic() - started < 4

    asyncio.run(main())


def test_a_batch_that_is_not_full_leaves_after_the_delay():
    async def main():
        batcher, model = make(max_delay_s=0.05), Doubler()
        await asyncio.gather(*(ask(batcher, model, n) for n in range(8)))  # from now on it expects as many
        assert await asyncio.wait_for(ask(batcher, model, 1), 2) == [2]
        assert batcher.idle

    asyncio.run(main())


def test_lanes_take_turns():
    async def main():
        batcher, model = make(max_batch_size=1), Doubler()
        order = []

        async def noted(name, n):
            await ask(batcher, model, n, key=name)
            order.append(name)

        await ask_behind(batcher, model, [*(noted("a", n) for n in range(5)), noted("b", 9)])
        assert order.index("b") < 3

    asyncio.run(main())


def test_every_request_has_the_same_time_and_one_can_be_given_less():
    async def main():
        batcher, model = make(timeout_s=0.3, max_batch_size=1), Doubler()
        model.gate.clear()
        started = time.monotonic()
        ends = {}

        async def late(number, timeout_s=None):
            with pytest.raises(RequestError, match=r"no answer within 0\.\d s") as error:
                await batcher.call("k", model, values(number), 1, joinable=True, timeout_s=timeout_s)
            assert error.value.code is Code.DEADLINE_EXCEEDED
            ends[number] = time.monotonic() - started

        async def later():
            await asyncio.sleep(0.2)
            await late(3)

        await asyncio.gather(late(0), late(1, 0.1), late(2, 99.0), later())
        assert 0.1 <= ends[1] < ends[0] < ends[3] and ends[0] >= 0.3 and ends[3] >= 0.5
        assert ends[2] < 50  # not more than all have
        assert batcher.waiting == 0
        model.gate.set()
        assert await ask(batcher, model, 5) == [10.0]
        assert not batcher._watched  # nothing keeps what is done

    asyncio.run(main())


def test_bytes_in_work_are_bounded_together_and_free_again_afterwards():
    async def main():
        batcher, model = make(max_bytes=100, max_batch_size=2), Doubler()
        model.gate.clear()
        tasks = [asyncio.create_task(ask(batcher, model, n)) for n in range(8)]  # 12 bytes each
        await asyncio.sleep(0.05)
        with pytest.raises(RequestError, match="requests are in work, at most") as error:
            await ask(batcher, model, 8)
        assert error.value.code is Code.RESOURCE_EXHAUSTED
        tasks[7].cancel()
        await asyncio.sleep(0.01)
        last = asyncio.create_task(ask(batcher, model, 9))
        await asyncio.sleep(0.01)
        assert not last.done()
        model.gate.set()
        assert (await asyncio.gather(*tasks[:7], last))[-1] == [18.0]
        assert batcher.held == 0
        assert await ask(batcher, model, *range(20)) == [2.0 * n for n in range(20)]  # one alone may be larger

    asyncio.run(main())


def test_texts_count_with_their_length():
    async def main():
        batcher = make(max_bytes=10)
        texts = {"x": np.array([b"123456", b"789"], object)}
        held = []
        await batcher.call("k", lambda inputs: held.append(batcher.held) or {"y": inputs["x"]}, texts, 2, joinable=True)
        assert held == [9]

    asyncio.run(main())
