"""The order of the records that training sees, and their names."""

import itertools
from pathlib import Path
from typing import Any

import pytest

from mlcore.data.records import RecordSet
from mlcore.detection.input import RECORD, Pipeline, describe_record


@pytest.fixture(scope="module")
def shards(records_dir: Path) -> list[Path]:
    return RecordSet.open(records_dir).shards("train")


def test_a_record_is_named_by_its_source_id_and_file(shards: list[Path]) -> None:
    assert describe_record(shards, 0).endswith(".jpg)")


def test_a_record_that_cannot_be_read_is_named_by_its_place(shards: list[Path]) -> None:
    assert describe_record(shards, 99) == "record 99 of shard 0"
    assert describe_record(shards, 7 << 32) == "record 0 of shard 7"


@pytest.fixture(scope="module")
def task(records_dir: Path) -> Any:
    from mlcore.detection.experiment import build_task
    from mlcore.detection.settings import Settings, configure

    return build_task(configure(Settings(image_size="64x96"), RecordSet.open(records_dir)))


def order(task: Any, shards: list[Path], batches: int, **options: Any) -> list[int]:
    from mlcore.detection.input import train_dataset

    records = options.pop("records")
    dataset = train_dataset(task, shards, records=records, **{"seed": 5, "batch_size": 2, **options})
    return [int(number) for _, labels in itertools.islice(dataset, batches) for number in labels[RECORD]]


@pytest.fixture(scope="module")
def count(records_dir: Path) -> int:
    return RecordSet.open(records_dir).count("train")


@pytest.mark.slow
def test_an_epoch_has_every_record_once_in_an_order_of_its_own(task: Any, shards: list[Path], count: int) -> None:
    seen = order(task, shards, 2 * count, records=count, batch_size=1)  # two epochs
    first, second = seen[:count], seen[count:]
    assert sorted(first) == sorted(second) == sorted(set(first))
    assert first != second
    assert first != order(task, shards, count, records=count, batch_size=1, seed=6)


@pytest.mark.slow
@pytest.mark.parametrize("batches_done", [1, 5, 11])
def test_a_resumed_run_goes_on_with_the_records_that_were_next(
    task: Any, shards: list[Path], count: int, batches_done: int
) -> None:
    whole = order(task, shards, 16, records=count)
    rest = order(task, shards, 16 - batches_done, records=count, examples_done=2 * batches_done)
    assert rest == whole[2 * batches_done :]


@pytest.mark.slow
@pytest.mark.parametrize("few", [False, True], ids=["shards for each", "fewer shards than pipelines"])
def test_pipelines_read_different_records(task: Any, shards: list[Path], count: int, few: bool) -> None:
    used = shards[:1] if few else shards
    pipelines = 2
    assert few or len(used) >= pipelines
    seen = [set(order(task, used, 3, records=count, pipeline=Pipeline(index, pipelines))) for index in range(pipelines)]
    assert not seen[0] & seen[1]


def sums(task: Any, shards: list[Path], batches: int, *, threads: int = 4, **options: Any) -> list[float]:
    """A number for each batch that is another one for other pictures."""
    import tensorflow as tf

    from mlcore.detection.input import train_dataset

    dataset = train_dataset(task, shards, **{"batch_size": 2, "seed": 5, **options})
    limits = tf.data.Options()
    limits.threading.private_threadpool_size = threads
    return [float(tf.reduce_sum(images**2)) for images, _ in itertools.islice(dataset.with_options(limits), batches)]


@pytest.mark.slow
def test_the_same_seed_gives_the_same_pictures_whatever_the_number_of_threads(
    task: Any, shards: list[Path], count: int
) -> None:
    one = sums(task, shards, 16, threads=1, records=count)
    assert sums(task, shards, 16, threads=4, records=count) == one
    assert len(set(one)) == 16  # each epoch augments in its own way
    assert sums(task, shards, 16, records=count, seed=6) != one


@pytest.mark.slow
def test_a_resumed_run_goes_on_with_the_pictures_that_were_next(task: Any, shards: list[Path], count: int) -> None:
    whole = sums(task, shards, 12, records=count)
    assert sums(task, shards, 7, records=count, examples_done=10) == whole[5:]


@pytest.mark.slow
@pytest.mark.parametrize(
    "augmentation",
    [
        pytest.param({"aug_type": {"type": "autoaug", "autoaug": {"augmentation_name": "test"}}}, id="autoaugment"),
        pytest.param({"aug_rand_jpeg": {"min_quality": 20, "max_quality": 90, "prob_to_apply": 0.5}}, id="jpeg noise"),
    ],
)
def test_policies_of_augmentation_give_the_same_pictures_for_a_seed(
    records_dir: Path, shards: list[Path], count: int, augmentation: dict[str, Any]
) -> None:
    from mlcore.detection.experiment import build_task
    from mlcore.detection.settings import Settings, configure
    from mlcore.detection.tensorflow import import_tensorflow

    import_tensorflow()
    import tf_keras

    overrides = {"task": {"train_data": {"parser": augmentation}}}
    task = build_task(configure(Settings(image_size="64x96", overrides=overrides), RecordSet.open(records_dir)))
    found = []
    for threads in (1, 4):
        tf_keras.utils.set_random_seed(4)
        found.append(sums(task, shards, 6, threads=threads, records=count))
    assert found[0] == found[1]
    assert len(set(found[0])) == 6
