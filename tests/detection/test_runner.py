"""Steps in this process, with a step that only counts."""

import time
from collections.abc import Iterator
from typing import Any

import pytest

from mlcore.detection.input import RECORD
from mlcore.detection.runner import LocalRunner
from mlcore.detection.tensorflow import import_tensorflow
from mlcore.detection.trainer import TOTAL_LOSS
from mlcore.runtime.signals import StopFlag

pytestmark = pytest.mark.slow


@pytest.fixture
def tf() -> Iterator[Any]:
    tensorflow = import_tensorflow()
    from tensorflow.python.framework import config

    yield tensorflow
    config.disable_op_determinism()  # TensorFlow's public functions can only enable it


class Counting:
    """The part of a trainer that a runner uses."""

    def step(self, inputs: tuple[Any, dict[str, Any]]) -> tuple[dict[str, Any], Any]:
        images, labels = inputs
        return {TOTAL_LOSS: images[0]}, labels[RECORD]

    def steps_done(self) -> int:
        return 0


@pytest.mark.parametrize("deterministic", [False, True])
def test_batches_are_prepared_while_a_step_runs(tf: Any, deterministic: bool) -> None:
    prepared: list[int] = []

    def epoch(number: Any) -> Any:
        return tf.data.Dataset.range(4).shuffle(4, seed=number, reshuffle_each_iteration=False)

    def prepare(record: Any) -> Any:
        tf.py_function(lambda number: prepared.append(int(number)), [record], [])
        return tf.cast(record, tf.float32), {RECORD: record}

    dataset = tf.data.Dataset.counter().flat_map(epoch).map(prepare, num_parallel_calls=2).batch(1).prefetch(2)
    runner = LocalRunner(Counting(), tf.distribute.get_strategy(), dataset, deterministic=deterministic)  # type: ignore[arg-type]  # a part of one
    assert runner.run(1, StopFlag()).steps == 1
    deadline = time.monotonic() + 10
    while len(prepared) < 3:
        assert time.monotonic() < deadline, f"{len(prepared)} prepared after the first step"
        time.sleep(0.01)
