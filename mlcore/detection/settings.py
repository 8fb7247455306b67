"""From a preset or an experiment, the data and the flags of `train` to one configuration of official.vision."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlcore.data.records import RecordSet
from mlcore.detection.experiment import (
    DEFAULT_PRESET,
    SECTIONS,
    check_experiment_name,
    first_line,
    load_preset,
    new_config,
    override,
)
from mlcore.runtime.errors import DataError, UsageError

if TYPE_CHECKING:
    from official.core.config_definitions import ExperimentConfig

log = logging.getLogger(__name__)

# What may differ between a run and the one that goes on with its model directory: how long, how often, how fast.
_MAY_CHANGE = re.compile(
    r"trainer\.(train_steps|steps_per_loop|\w+_interval|max_to_keep|validation_\w+|best_checkpoint_\w+)"
    r"|trainer\.optimizer_config\.warmup\.linear\.warmup_steps"
    r"|trainer\.optimizer_config\.learning_rate\.\w+\.(decay_steps|total_decay_steps|boundaries)(\.\d+)?"
    r"|task\.(train_data|validation_data)\.(input_path|shuffle_buffer_size|prefetch_buffer_size)"
    r"|task\.validation_data\..*"
    r"|runtime\.(?!mixed_precision_dtype).*"
    r"|preset|data\.(?!digest).*"
)


# Settings of official.vision whose place flags of the step have taken.
_NOT_USED = {
    "task.train_data.input_path": "the records are those of --data-dir",
    "task.validation_data.input_path": "the records are those of --data-dir",
    "runtime.distribution_strategy": "see --strategy",
    "runtime.num_gpus": "see --strategy",
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The flags of `train` that change the configuration; None leaves what the preset or experiment says."""

    preset: str | None = None
    experiment: str | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    steps: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    warmup_steps: int | None = None
    schedule: str | None = None
    clip_norm: float | None = None
    image_size: str | None = None
    init_checkpoint: str | None = None
    init_modules: tuple[str, ...] = ("backbone", "decoder")
    mixed_precision: str | None = None
    flip: bool | None = None
    scale_min: float | None = None
    scale_max: float | None = None
    augmentation: str | None = None
    checkpoint_interval: int | None = None
    eval_interval: int | None = None
    keep_checkpoints: int | None = None

    def source(self) -> tuple[str, str | None, dict[str, Any]]:
        """Name of the experiment, of the preset (if any), and what the preset changes. Does not load TensorFlow.

        Raises:
            UsageError: Unknown names, or both a preset and an experiment.
        """
        if self.experiment is not None:
            if self.preset is not None:
                raise UsageError(f"--preset={self.preset} and --experiment={self.experiment}: give one of them")
            check_experiment_name(self.experiment)
            return self.experiment, None, {}
        name = self.preset or DEFAULT_PRESET
        changes = load_preset(name)
        return str(changes.pop("experiment")), name, {key: changes[key] for key in SECTIONS if key in changes}


def parse_image_size(text: str) -> tuple[int, int]:
    """Height and width from `256x320`, or from `512` for a square.

    Raises:
        UsageError: It is neither.
    """
    match = re.fullmatch(r"\s*(\d+)(?:\s*[xX]\s*(\d+))?\s*", text)
    if not match or int(match[1]) < 1 or int(match[2] or 1) < 1:
        raise UsageError(f"--image-size={text}: expected HEIGHTxWIDTH such as 256x320, or one number for a square")
    return int(match[1]), int(match[2] or match[1])


def configure(settings: Settings, records: RecordSet) -> ExperimentConfig:
    """The configuration to train with.

    In this order: the experiment, the preset, the classes of the data, the plain flags, `--overrides`.

    Raises:
        UsageError: A flag or an override does not fit.
        DataError: The model predicts masks and the records have none.
    """
    experiment, preset, changes = settings.source()
    config = new_config(experiment)
    task = config.task
    # What official's experiments set for COCO on a TPU, and what training here never wants.
    if task.init_checkpoint and not settings.init_checkpoint:
        log.info(
            "%s starts from scratch; its published start is %s (--init-checkpoint)", experiment, task.init_checkpoint
        )
    task.init_checkpoint, task.annotation_file = "", None
    config.runtime.mixed_precision_dtype, config.runtime.enable_xla = "float32", False
    for data in (task.train_data, task.validation_data):
        data.input_path, data.dtype = "", "float32"
        # A mask of one bit is read as 0 and 255; as it is, the loss of Mask R-CNN would fall without end.
        data.decoder.simple_decoder.mask_binarize_threshold = 0.0
    task.validation_data.drop_remainder = False
    config.trainer.validation_steps = -1
    override(config, changes, f"preset {preset}")
    task.model.num_classes = max(records.classes) + 1  # 0 is the background
    _apply_flags(config, settings)
    override(config, settings.overrides, "--overrides or --config")
    for name in _flat(settings.overrides):
        if (instead := _NOT_USED.get(name)) is not None:
            log.warning("%s is not used here; %s", name, instead)
    with blamed_on(settings):
        config.as_dict()
        _check(config, records)
    return config


@contextlib.contextmanager
def blamed_on(settings: Settings) -> Iterator[None]:
    """What official.vision cannot make of the user's overrides as one line that names them.

    It takes values as they are, and fails where they are used, each place in its own way.

    Raises:
        UsageError: Something failed in the block, and there are overrides.
    """
    try:
        yield
    except (ArithmeticError, AssertionError, AttributeError, LookupError, NotImplementedError, TypeError,
            ValueError) as error:  # fmt: skip
        if not settings.overrides:
            raise
        given = ", ".join(f"{name}={value}" for name, value in _flat(settings.overrides).items())
        raise UsageError(
            f"--overrides or --config: no model or input can be made with {given[:300]} "
            f"({type(error).__name__}: {first_line(error)[:200]})"
        ) from error


def _apply_flags(config: ExperimentConfig, settings: Settings) -> None:
    task, trainer = config.task, config.trainer
    if settings.image_size is not None:
        task.model.input_size = [*parse_image_size(settings.image_size), 3]
    if settings.init_checkpoint is not None:
        task.init_checkpoint = settings.init_checkpoint
        modules = settings.init_modules
        task.init_checkpoint_modules = "all" if "all" in modules else list(modules)
    if settings.mixed_precision is not None:
        config.runtime.mixed_precision_dtype = settings.mixed_precision
        if settings.mixed_precision == "float16" and config.runtime.loss_scale is None:
            config.runtime.loss_scale = "dynamic"
    parser = task.train_data.parser
    if settings.flip is not None:
        parser.aug_rand_hflip = settings.flip
    if settings.scale_min is not None:
        parser.aug_scale_min = settings.scale_min
    if settings.scale_max is not None:
        parser.aug_scale_max = settings.scale_max
    if settings.augmentation is not None:
        override(
            config,
            {"task": {"train_data": {"parser": {"aug_type": _augmentation(settings.augmentation)}}}},
            f"--augmentation={settings.augmentation}",
        )
    if settings.checkpoint_interval is not None:
        trainer.checkpoint_interval = settings.checkpoint_interval
    if settings.eval_interval is not None:
        trainer.validation_interval = settings.eval_interval
    if settings.keep_checkpoints is not None:
        trainer.max_to_keep = settings.keep_checkpoints
    _set_optimizer(config, settings)


def _augmentation(name: str) -> dict[str, Any] | None:
    return None if name == "none" else {"type": name}


def _set_optimizer(config: ExperimentConfig, settings: Settings) -> None:
    trainer, optimization = config.trainer, config.trainer.optimizer_config
    data = config.task.train_data
    optimizer, rate, warmup = optimization.optimizer, optimization.learning_rate, optimization.warmup
    factor = 1.0
    if settings.batch_size is not None and settings.batch_size != data.global_batch_size:
        if data.global_batch_size and settings.learning_rate is None and optimizer.type:
            # The rules of the field: linear for SGD, the square root for optimisers that normalise the gradient.
            ratio = settings.batch_size / data.global_batch_size
            factor = ratio if "sgd" in optimizer.type or optimizer.type == "lars" else ratio**0.5
        data.global_batch_size = settings.batch_size
    if optimizer.type is None:  # the bare experiment `retinanet` has no optimizer
        optimizer.type, warmup.type, warmup.linear.warmup_steps = "sgd", "linear", 500
        optimizer.sgd.momentum = 0.9
    if rate.type is None or settings.schedule is not None:
        peak = _peak(rate) or 0.01
        rate.type = settings.schedule or "cosine"
        if rate.type == "constant":
            rate.constant.learning_rate = peak
        else:
            rate.cosine.initial_learning_rate = peak
    if settings.learning_rate is not None:
        factor = settings.learning_rate / (_peak(rate) or settings.learning_rate)
    steps = settings.steps or trainer.train_steps
    if steps < 1:
        raise UsageError("--steps: the experiment does not say how long to train; give it")
    _scale_schedule(rate, factor, steps, trainer.train_steps or steps)
    if factor != 1 and settings.learning_rate is None:
        log.info(
            "learning rate %g for a batch of %d (%g times the preset's)", _peak(rate), data.global_batch_size, factor
        )
    trainer.train_steps = steps
    if settings.warmup_steps is not None:
        warmup.type = "linear" if settings.warmup_steps else None
        warmup.linear.warmup_steps = settings.warmup_steps
    elif warmup.type == "linear" and settings.steps is not None:
        warmup.linear.warmup_steps = min(warmup.linear.warmup_steps, max(steps // 5, 1))
    if warmup.type == "linear":
        warmup.linear.warmup_learning_rate = min(warmup.linear.warmup_learning_rate, _peak(rate) or 0.0)
    if settings.clip_norm is not None:
        optimizer.get().global_clipnorm = settings.clip_norm or None
    for interval in ("checkpoint_interval", "validation_interval", "summary_interval"):
        setattr(trainer, interval, min(getattr(trainer, interval), steps))


def _peak(rate: Any) -> float | None:
    """The highest learning rate of a schedule."""
    schedule = rate.get()
    if rate.type == "constant":
        return float(schedule.learning_rate)
    if rate.type == "stepwise":
        return float(max(schedule.values)) if schedule.values else None
    value = getattr(schedule, "initial_learning_rate", None)
    return float(value) if value is not None else None


def _scale_schedule(rate: Any, factor: float, steps: int, steps_before: int) -> None:
    """Multiply a schedule's learning rates by `factor` and stretch it from `steps_before` steps to `steps`."""
    schedule = rate.get()
    if rate.type == "constant":
        schedule.learning_rate *= factor
    elif rate.type == "stepwise":
        schedule.values = [value * factor for value in schedule.values]
        schedule.boundaries = [round(boundary * steps / steps_before) for boundary in schedule.boundaries]
    else:
        if schedule.initial_learning_rate is not None:
            schedule.initial_learning_rate *= factor
        for name in ("decay_steps", "total_decay_steps"):
            if hasattr(schedule, name):
                setattr(schedule, name, steps)


def _check(config: ExperimentConfig, records: RecordSet) -> None:
    """What official.vision would find out late, or never."""
    model, trainer = config.task.model, config.trainer
    if not model.input_size:
        raise UsageError("--image-size: the experiment has no size; give it, such as 512 or 256x320")
    stride = 2**model.max_level
    height, width = (int(side) for side in model.input_size[:2])
    if height % stride or width % stride:
        nearest = "x".join(str(max(round(side / stride), 1) * stride) for side in (height, width))
        raise UsageError(
            f"--image-size={height}x{width}: expected multiples of {stride} (2 to the model's max_level), "
            f"such as {nearest}"
        )
    backbone = model.backbone.get()
    if hasattr(backbone, "min_level"):  # SpineNet makes the pyramid itself
        backbone.min_level, backbone.max_level = model.min_level, model.max_level
    if config.task.train_data.global_batch_size < 1:
        raise UsageError("--batch-size (task.train_data.global_batch_size): expected at least 1; give it")
    if model.num_classes <= max(records.classes):
        raise UsageError(
            f"--overrides: task.model.num_classes={model.num_classes}: expected at least {max(records.classes) + 1}, "
            "the highest id of the label map and the background"
        )
    if getattr(model, "include_mask", False) and not records.has_masks:
        raise DataError(
            f"{records.path}: the records have no masks, which this model learns; convert with --target=bodies, "
            "or train without: --overrides=task.model.include_mask=false"
        )
    if getattr(model, "include_mask", False):  # masks are sampled among the regions
        model.mask_sampler.num_sampled_masks = min(
            model.mask_sampler.num_sampled_masks, model.roi_sampler.num_sampled_rois
        )
    if config.task.init_checkpoint_modules not in ("all",) and config.task.init_checkpoint:
        unknown = set(config.task.init_checkpoint_modules) - {"backbone", "decoder"}
        if unknown:  # official.vision loads nothing for a name that it does not know, and says nothing
            raise UsageError(f"--init-modules={sorted(unknown)[0]}: expected backbone, decoder or all")
    if trainer.max_to_keep < 1:
        raise UsageError(f"--keep-checkpoints (trainer.max_to_keep) is {trainer.max_to_keep}; expected at least 1")
    if trainer.train_steps < 1:
        raise UsageError(f"--steps={trainer.train_steps}: expected at least 1")


def describe(settings: Settings, config: ExperimentConfig, records: RecordSet, seed: int) -> dict[str, Any]:
    """What `experiment.yaml` says."""
    experiment, preset, _ = settings.source()
    highest = max(records.classes)
    return {
        "experiment": experiment,
        "preset": preset,
        "classes": [records.classes.get(number, "") for number in range(1, highest + 1)],
        "data": {
            "digest": records.digest,
            "path": str(records.path.resolve()),  # export compares on these pictures
            "images": {name: split.images for name, split in records.by_split.items()},
        },
        "seed": seed,
        **config.as_dict(),
    }


def difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """The first thing in which two descriptions differ that a run cannot go on with, in words."""
    old, new = _flat(before), _flat(now)
    for name in (*new, *(name for name in old if name not in new)):
        if old.get(name) != new.get(name) and not _MAY_CHANGE.fullmatch(name):
            whole = name.rpartition(".")[0]
            if whole in old or whole in new:  # a list on one side, a single value on the other
                return f"{whole} {_whole(old, whole)}, now {_whole(new, whole)}"
            return f"{name} {old.get(name)}, now {new.get(name)}"
    return None


def _whole(flat: Mapping[str, Any], name: str) -> str:
    """A value as it was before `_flat`, in words."""
    if name in flat:
        return str(flat[name])
    return ", ".join(str(value) for key, value in flat.items() if key.startswith(f"{name}."))


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping):
        entries = value.items()
    elif isinstance(value, list | tuple):
        entries = {str(index): entry for index, entry in enumerate(value)}.items()
    else:
        return {path: value}
    return {
        name: leaf
        for key, entry in entries
        for name, leaf in _flat(entry, f"{path}.{key}" if path else str(key)).items()
    }


def check_init_checkpoint(prefix: str) -> None:
    """Raise UsageError unless a checkpoint is there, before the model is built."""
    if "://" in prefix:
        return  # on an object store; TensorFlow will say
    path = Path(prefix)
    if path.is_dir() and any(path.glob("*.index")):
        return
    if not path.with_name(f"{path.name}.index").exists():
        raise UsageError(
            f"--init-checkpoint={prefix}: no such checkpoint; expected a directory with one, or its prefix such as "
            "model/ckpt-500 (without .index)"
        )
