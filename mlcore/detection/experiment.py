"""What is trained: an experiment of official.vision, a preset over it, and the files that describe a trained model.

A model directory holds, beside its checkpoints, `experiment.yaml`: the whole configuration as trained (the sections
`task`, `trainer` and `runtime` of an `official.core.config_definitions.ExperimentConfig`), the name of the experiment,
the classes and the data. Evaluation and export read it back:

    config = load_experiment(model_dir)
    task = build_task(config)
    model = build_model(task)
    step = restore(model, find_checkpoint(model_dir))   # from mlcore.detection.checkpoints
"""

from __future__ import annotations

import contextlib
import difflib
import importlib.resources
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from mlcore.detection.tensorflow import import_tensorflow
from mlcore.runtime.errors import DataError, UsageError
from mlcore.runtime.outputs import atomic_file

if TYPE_CHECKING:
    import tf_keras
    from official.core.base_task import Task
    from official.core.config_definitions import ExperimentConfig

EXPERIMENT_FILE = "experiment.yaml"
DEFAULT_PRESET = "retinanet-mobile"
SECTIONS = ("task", "trainer", "runtime")

# The detection experiments that official.vision registers, so that a typo is answered without loading TensorFlow.
EXPERIMENTS = (
    "retinanet",
    "retinanet_resnetfpn_coco",
    "retinanet_spinenet_coco",
    "retinanet_mobile_coco",
    "fasterrcnn_resnetfpn_coco",
    "maskrcnn_resnetfpn_coco",
    "maskrcnn_spinenet_coco",
    "maskrcnn_mobilenet_coco",
    "cascadercnn_spinenet_coco",
)


def presets() -> tuple[str, ...]:
    """Names of the presets, the default one first."""
    folder = importlib.resources.files("mlcore.detection.presets")
    names = sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))
    return tuple(sorted(names, key=lambda name: name != DEFAULT_PRESET))


def load_preset(name: str) -> dict[str, Any]:
    """A preset: the key `experiment`, and the sections that it changes.

    Raises:
        UsageError: There is no such preset.
    """
    known = presets()
    if name not in known:
        raise UsageError(f"--preset={name}: unknown{_did_you_mean(name, known)}; expected one of {', '.join(known)}")
    text = importlib.resources.files("mlcore.detection.presets").joinpath(f"{name}.yaml").read_text()
    loaded: dict[str, Any] = yaml.safe_load(text)
    return loaded


def check_experiment_name(name: str) -> None:
    """Raise UsageError, with the list, unless `name` is a detection experiment of official.vision."""
    if name not in EXPERIMENTS:
        raise UsageError(
            f"--experiment={name}: unknown{_did_you_mean(name, EXPERIMENTS)}; expected one of {', '.join(EXPERIMENTS)}"
        )


def _did_you_mean(name: str, known: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def new_config(experiment: str) -> ExperimentConfig:
    """The configuration that official.vision registers under this name, unchanged.

    Raises:
        UsageError: Unknown name, or official.vision is not installed.
    """
    check_experiment_name(experiment)
    import_tensorflow()
    # Importing the package registers its experiments; `registry_imports` would add all of official.projects.
    import official.vision  # noqa: F401
    from official.core import exp_factory

    return exp_factory.get_exp_config(experiment)


def override(config: ExperimentConfig, changes: Mapping[str, Any], source: str) -> None:
    """Change a configuration in place; a key that it does not have is an error.

    Args:
        config: The configuration.
        changes: Nested mapping with the sections `task`, `trainer` and `runtime`.
        source: Where the changes come from, for the message.

    Raises:
        UsageError: A key does not exist, or a value does not fit.
    """
    unknown = set(changes) - set(SECTIONS)
    if unknown:
        raise UsageError(f"{source}: {sorted(unknown)[0]}: unknown section; expected {', '.join(SECTIONS)}")
    checked = _checked(config, changes, source, ())
    try:
        config.override(checked, is_strict=True)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(f"{source}: does not fit the experiment's configuration ({first_line(error)})") from error


def _checked(config: Any, changes: Mapping[str, Any], source: str, path: tuple[str, ...]) -> dict[str, Any]:
    """The changes, if every key exists and every value is of the kind that was there; official.vision takes any."""
    # Not through `as_dict`: of alternatives such as the backbones it shows only the chosen one.
    known = tuple(key for key in vars(config) if key not in config.RESERVED_ATTR)
    checked = {}
    for key, value in changes.items():
        here = ".".join((*path, str(key)))
        if key not in known:
            raise UsageError(f"{source}: {here}: no such setting{_did_you_mean(str(key), known)}")
        before = getattr(config, key)
        if value is None or before is None:
            checked[key] = value
        elif not hasattr(before, "as_dict"):
            checked[key] = _of_kind(before, value, f"{source}: {here}={value}")
        elif isinstance(value, Mapping):
            checked[key] = _checked(before, value, source, (*path, str(key)))
        else:
            raise UsageError(f"{source}: {here}={value}: expected settings below it ({', '.join(before.as_dict())})")
    return checked


def _of_kind(before: Any, value: Any, what: str) -> Any:
    if isinstance(before, bool):
        fits, words = isinstance(value, bool), "true or false"
    elif isinstance(before, int | float):
        if isinstance(value, str):
            with contextlib.suppress(ValueError):
                value = float(value)  # YAML takes 1e-3, without a point, for text
        fits, words = isinstance(value, int | float) and not isinstance(value, bool), "a number"
    elif isinstance(before, str):  # some settings are one name or several
        fits, words = isinstance(value, str | list | tuple), "text"
    else:
        fits, words = isinstance(value, list | tuple | str | Mapping), "a list such as [1, 2]"
    if not fits:
        raise UsageError(f"{what}: expected {words}")
    return value


def first_line(error: BaseException) -> str:
    """The first line of an error's message."""
    return str(error.args[0] if error.args else error).strip().splitlines()[0]


def write_experiment(model_dir: Path, description: Mapping[str, Any]) -> None:
    """Write `experiment.yaml`: what `describe_experiment` gives back."""
    with atomic_file(model_dir / EXPERIMENT_FILE) as temporary:
        temporary.write_text(yaml.safe_dump(dict(description), sort_keys=False))


def describe_experiment(model_dir: Path) -> dict[str, Any]:
    """Everything in `experiment.yaml`, without loading TensorFlow.

    Returns:
        `experiment` and `preset` (names), `classes` (list of names, id 1 first; a hole in the label map is an empty
        name), `data` (digests and numbers of examples of the splits), `seed`, and the sections `task`, `trainer` and
        `runtime`.

    Raises:
        DataError: The directory holds no such file, or it is damaged.
    """
    path = model_dir / EXPERIMENT_FILE
    try:
        description = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise DataError(f"{model_dir}: no {EXPERIMENT_FILE}; expected a model directory of `mlcore train`") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(f"{path}: cannot be read ({first_line(error)})") from error
    if not isinstance(description, dict) or not {"experiment", "classes", *SECTIONS} <= set(description):
        raise DataError(f"{path}: expected the keys experiment, classes, {', '.join(SECTIONS)}")
    return description


def load_experiment(model_dir: Path) -> ExperimentConfig:
    """The configuration as trained, locked.

    Raises:
        DataError: `experiment.yaml` is missing, damaged or of another version of official.vision.
    """
    description = describe_experiment(model_dir)
    try:
        config = new_config(str(description["experiment"]))
        override(config, {name: description[name] for name in SECTIONS}, str(model_dir / EXPERIMENT_FILE))
    except UsageError as error:
        if "not installed" in str(error):
            raise
        raise DataError(str(error)) from error
    config.lock()
    return config


def build_task(config: ExperimentConfig, logging_dir: Path | None = None) -> Task:
    """The task of official.vision that the configuration belongs to (RetinaNetTask or MaskRCNNTask).

    Args:
        config: The configuration.
        logging_dir: Where the task may write files of its own (the annotation file of Mask R-CNN's evaluation).
    """
    from official.core import task_factory

    return task_factory.get_task(config.task, logging_dir=str(logging_dir) if logging_dir else None)


def set_precision(config: ExperimentConfig, *, training: bool = False) -> None:
    """Make the models that are built from now on compute in float32, or as the configuration says when training.

    Weights are float32 in any case. Detection after training never uses less: suppression has no kernels for it.
    """
    from official.modeling import performance

    performance.set_mixed_precision_policy(config.runtime.mixed_precision_dtype if training else "float32")


def build_model(task: Task) -> tf_keras.Model:
    """The task's model with all its variables, freshly initialised. Call it in the strategy's scope.

    Every variable exists when this returns (official's RetinaNet makes those of its head at the first call only), so
    that checkpoints, optimisers and counts of parameters need no first step.
    """
    tf = import_tensorflow()

    def build() -> tf_keras.Model:
        model = task.build_model()
        head = getattr(model, "head", None)  # the R-CNNs have several and build them
        if head is not None and not head.built:
            shapes = (model.decoder or model.backbone).output_shape
            head({level: tf.zeros((1, *shape[1:])) for level, shape in shapes.items()}, training=False)
        return model

    # Official's layers branch on Python values alone; converting their code with AutoGraph is time for nothing.
    return tf.autograph.experimental.do_not_convert(build)()


def restore(model: tf_keras.Model, checkpoint: Path) -> int:
    """Load a model's weights from a checkpoint of training; returns the step it was saved at.

    Args:
        model: From `build_model`, with the configuration of the same run.
        checkpoint: Prefix of the checkpoint, such as `model/ckpt-500` (from `find_checkpoint`).

    Raises:
        DataError: The checkpoint is damaged, or not of this model.
    """
    tf = import_tensorflow()
    step = tf.Variable(0, dtype=tf.int64)
    try:
        status = tf.train.Checkpoint(model=model, global_step=step).read(str(checkpoint))
        status.expect_partial().assert_existing_objects_matched()
    except (tf.errors.OpError, AssertionError, ValueError, IndexError, RuntimeError) as error:
        raise DataError(f"{checkpoint}: is damaged or does not fit the model ({first_line(error)})") from error
    return int(step.numpy())
