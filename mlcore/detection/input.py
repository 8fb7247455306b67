"""The input of training: records, shuffled, decoded, augmented and batched.

Decoding and augmentation are official.vision's own, as its task would do them. The reading is not, because a run must
be able to go on where it was (the order of an epoch is a function of the seed and its number, and records that were
used are passed over without being decoded; the random numbers of an example are a function of the seed and its number)
and to name the records of a batch that broke the training.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlcore.data.example import decode
from mlcore.data.tfrecord import read_records
from mlcore.detection.draws import Draws
from mlcore.detection.tensorflow import import_tensorflow
from mlcore.runtime.errors import DataError

if TYPE_CHECKING:
    import tensorflow as tf
    from official.core.base_task import Task
    from official.core.config_definitions import DataConfig

log = logging.getLogger(__name__)

RECORD = "record"  # key among the labels: where each example comes from, shard * 2**32 + position in it
_POSITION_BITS = 32
_MOST_AT_A_TIME = 64  # pictures being prepared
_SHUFFLE_BYTES = 512 << 20  # at most this much of undecoded records waits in the shuffle buffer


@dataclass(frozen=True)
class Pipeline:
    """One of several input pipelines that share the records, such as a worker of a cluster.

    Attributes:
        index: Its number, from 0.
        count: How many there are. Each reads its own shards, or its own records where there are fewer shards.
    """

    index: int = 0
    count: int = 1


def train_dataset(
    task: Task,
    shards: Sequence[Path],
    *,
    records: int,
    batch_size: int,
    seed: int,
    examples_done: int = 0,
    deterministic: bool = True,
    pipeline: Pipeline = Pipeline(),
) -> tf.data.Dataset:
    """Batches for ever, as (images, labels) of the task, with the labels' extra key `RECORD` (int64, one an image).

    Args:
        task: Its configuration says how to decode and augment (`train_data`).
        shards: TFRecord files.
        records: How many records they hold together.
        batch_size: Images a batch, of this pipeline.
        seed: Decides the order of the records, and the augmentation.
        examples_done: Examples of this pipeline that were used before; they are passed over.
        deterministic: The same seed gives the same pictures, whatever the number of threads, also when a run goes on;
            in one thread where the augmentation keeps a state.
        pipeline: Which part of the records to read.
    """
    tf = import_tensorflow()
    config = task.task_config.train_data
    size = sum(shard.stat().st_size for shard in shards)
    buffer = max(1, min(config.shuffle_buffer_size, records, _SHUFFLE_BYTES * records // max(size, 1)))
    here = max(records // pipeline.count, 1)
    epoch, offset = divmod(examples_done, here)

    def read_epoch(number: Any) -> Any:
        order = seed * 1_000_003 + number
        dataset = _read(tf, shards, pipeline, order)
        return dataset.shuffle(buffer, seed=order, reshuffle_each_iteration=False)

    dataset = tf.data.Dataset.counter(start=epoch).flat_map(read_epoch).skip(offset).enumerate(start=examples_done)
    parts = official_parts(task, config)

    with Draws(seed * 1_009 + pipeline.index) as draws:

        def parse(number: Any, numbered_example: Any) -> tuple[Any, Mapping[str, Any]]:
            draws.begin(number)
            record, example = numbered_example
            images, labels = parts.parse(parts.decode(example))
            return images, {**labels, RECORD: record}

        function = parts.traceable(parse)
        prepared = dataset.map(function, num_parallel_calls=tf.data.AUTOTUNE)
        if deterministic and draws.keep_state():
            log.info("this augmentation draws random numbers in loops: pictures are prepared in one thread")
            prepared = dataset.map(function)
    dataset = prepared.batch(batch_size, drop_remainder=True).prefetch(2)
    options = tf.data.Options()
    options.deterministic = True
    # As many pictures at a time as the machine that reads has CPUs; tuning that costs time and finds nothing better.
    options.autotune.enabled, options.autotune.initial_parallelism = False, _MOST_AT_A_TIME
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return dataset.with_options(options)


def _read(tf: Any, shards: Sequence[Path], pipeline: Pipeline, order: tf.Tensor) -> tf.data.Dataset:
    """(record number, serialised example) of all records of a pipeline once, the shards in an order of their own."""

    def read_shard(index: tf.Tensor, path: tf.Tensor) -> tf.data.Dataset:
        return tf.data.TFRecordDataset(path).enumerate(start=tf.bitwise.left_shift(index, _POSITION_BITS))

    files = tf.data.Dataset.from_tensor_slices([str(shard) for shard in shards]).enumerate()
    by_file = pipeline.count > 1 and len(shards) >= pipeline.count
    if by_file:
        files = files.shard(pipeline.count, pipeline.index)
    files = files.shuffle(len(shards), seed=order, reshuffle_each_iteration=False)
    dataset = files.interleave(read_shard, cycle_length=min(len(shards), 8))
    if pipeline.count > 1 and not by_file:
        dataset = dataset.shard(pipeline.count, pipeline.index)
    return dataset


@dataclass(frozen=True)
class OfficialParts:
    """The decoder and the parser that a task reads its records with.

    Attributes:
        decode: Serialised tf.train.Example -> decoded tensors.
        parse: Decoded tensors -> (image, labels), with augmentation when training.
        needs_autograph: Whether their code has conditions on tensors.
    """

    decode: Callable[[Any], Any]
    parse: Callable[[Any], Any]
    needs_autograph: bool

    def traceable(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function for `Dataset.map`, without AutoGraph where it can be: converting the code takes seconds."""
        tf = import_tensorflow()
        return function if self.needs_autograph else tf.autograph.experimental.do_not_convert(function)


class _PartsKept(Exception):
    """Carries the arguments of the reader out of `build_inputs`."""

    def __init__(self, decode: Callable[[Any], Any], parse: Callable[[Any], Any]) -> None:
        super().__init__()
        self.decode, self.parse = decode, parse


def official_parts(task: Task, config: DataConfig) -> OfficialParts:
    """The decoder and the parser of `task.build_inputs(config)`, configured as it would, without its reader.

    A task builds them inside `build_inputs` and hands them to a reader's factory, looked up in its module; there they
    are taken.
    """
    from official.vision.dataloaders import input_reader_factory

    def keep(params: Any, *, decoder_fn: Any, parser_fn: Any, **_: Any) -> Any:
        raise _PartsKept(decoder_fn, parser_fn)

    original = input_reader_factory.input_reader_generator
    input_reader_factory.input_reader_generator = keep
    try:
        task.build_inputs(config)
    except _PartsKept as kept:
        # The policies (AutoAugment and others) and the JPEG noise branch on tensors; decoders and parsers do not.
        parser = config.parser
        branches = parser.aug_type is not None or getattr(parser, "aug_rand_jpeg", None) is not None
        return OfficialParts(kept.decode, kept.parse, needs_autograph=branches)
    finally:
        input_reader_factory.input_reader_generator = original
    raise TypeError(f"{type(task).__name__}.build_inputs makes no reader of its own")


def describe_record(shards: Sequence[Path], record: int) -> str:
    """Source id and file name of a record, by the number that `train_dataset` gave it."""
    index, position = divmod(record, 1 << _POSITION_BITS)
    try:
        for number, data in enumerate(read_records(shards[index])):
            if number == position:
                features = decode(data)
                source, name = (_text(features.get(key)) for key in ("image/source_id", "image/filename"))
                return f"{source} ({name})" if name else source
    except (DataError, OSError, IndexError):
        pass  # the record cannot be read now; its place is what can be said
    return f"record {position} of shard {index}"


def _text(values: Any) -> str:
    return values[0].decode(errors="replace") if values else ""
