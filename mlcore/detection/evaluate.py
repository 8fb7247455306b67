"""The step `evaluate`: COCO metrics of a checkpoint or of an exported model."""

import contextlib
import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from mlcore.runtime.errors import DataError, UsageError
from mlcore.runtime.outputs import OutputDirectory, file_digest
from mlcore.runtime.parameters import Range, step

if TYPE_CHECKING:
    from mlcore.detection.detectors import Detector
    from mlcore.detection.metrics import CocoMetrics

log = logging.getLogger(__name__)

METRICS_FILE = "metrics.json"
EVALUATIONS = "evaluation"  # folder in a model directory: one folder in it for each split and checkpoint


@dataclass(frozen=True)
class EvaluateResult:
    """What was measured; None where there is nothing to measure, such as objects of a size that do not occur.

    Names follow `mlcore.detection.metrics`. IoU is the overlap of a predicted box with the true one.

    Attributes:
        images: Images of the split, all of them.
        objects: True boxes in them.
        coco_ap: COCO's AP: the mean over IoU .50, .55 to .95 and over the classes.
        ap50: AP at IoU .50, which PASCAL VOC uses.
        ap75: AP at IoU .75.
        ap_small: AP of objects below 32 x 32 pixels.
        ap_medium: AP of objects from 32 x 32 to 96 x 96 pixels.
        ap_large: AP of objects above 96 x 96 pixels.
        ar_1_detection: Average recall with the best detection of each image.
        ar_10_detections: Average recall with the ten best.
        ar_100_detections: Average recall with the hundred best.
        ar_small: Average recall of small objects.
        ar_medium: Average recall of medium objects.
        ar_large: Average recall of large objects.
        mask_coco_ap: AP of masks, where the model has them.
        mask_ap50: AP of masks at IoU .50.
        mask_ap75: AP of masks at IoU .75.
        output_dir: Where metrics.json is, if it was written.
    """

    images: int
    objects: int
    coco_ap: float | None = None
    ap50: float | None = None
    ap75: float | None = None
    ap_small: float | None = None
    ap_medium: float | None = None
    ap_large: float | None = None
    ar_1_detection: float | None = None
    ar_10_detections: float | None = None
    ar_100_detections: float | None = None
    ar_small: float | None = None
    ar_medium: float | None = None
    ar_large: float | None = None
    mask_coco_ap: float | None = None
    mask_ap50: float | None = None
    mask_ap75: float | None = None
    output_dir: Path | None = None


@step
def evaluate(
    *,
    data_dir: Path,
    split: str = "test",
    model_dir: Path | None = None,
    model: Path | None = None,
    checkpoint: str = "best",
    batch_size: Annotated[int, Range(min=1)] = 8,
    max_images: Annotated[int, Range(min=1)] | None = None,
    output_dir: Path | None = None,
    overwrite: bool = False,
) -> EvaluateResult:
    """Measure a detector: COCO AP, AP50, AP75 and AR, by size and by class, from a checkpoint or an export.

    The table goes to the log. The output directory holds `metrics.json` and TensorBoard scalars under the same names;
    COCO's AP is called coco_ap, since Katib takes a metric by the beginning of its name. A model with masks is measured
    by boxes and by masks (mask_coco_ap, mask_ap50, ...).

    Args:
        data_dir: Folder with the records of `mlcore convert`.
        split: Split of the records to evaluate on.
        model_dir: Directory of `mlcore train`, to evaluate one of its checkpoints. Either this or --model.
        model: Exported version directory, or its parent: then the highest version in it. Either this or --model-dir.
        checkpoint: Of --model-dir: best (of the evaluations during training; the latest where it kept none), latest, or
            the number of a step.
        batch_size: Images that go through the model at once.
        max_images: Evaluate only the first so many images. Default: all of the split.
        output_dir: Directory for the results. Default: evaluation/<split>-<step> in --model-dir; with --model nothing
            is written unless this is given.
        overwrite: Replace results that were made from something else.

    Raises:
        UsageError: Neither or both of model_dir and model, or one of the paths is not there.
        DataError: The records or the model are damaged, or their classes differ.
    """
    from mlcore.data.records import RecordSet

    if (model_dir is None) == (model is None):
        both = ", not both" if model is not None else ""
        raise UsageError(f"one of --model-dir (a checkpoint) and --model (an export) must be given{both}")
    records = RecordSet.open(data_dir)
    chosen = records.split(split)
    source = Checkpoint.find(model_dir, checkpoint) if model_dir is not None else Export.find(model)
    _check_classes(records.classes, source.classes, data_dir, source.path)
    if output_dir is None and model_dir is not None:
        output_dir = model_dir / EVALUATIONS / f"{split}-{source.step}"
    output = None
    if output_dir is not None:
        output = OutputDirectory(
            output_dir,
            step="evaluate",
            parameters={"split": split, "max_images": max_images},
            inputs={"records": records.digest, "model": source.digest},
            reads=[data_dir, source.path],
            overwrite=overwrite,
        )
        if (done := output.existing()) is not None:
            return EvaluateResult(**done["results"], output_dir=output_dir)

    from mlcore.detection.detectors import evaluate_split

    with contextlib.ExitStack() as stack:
        # Made first: a place that cannot be written is known before the work.
        directory = stack.enter_context(output.writing()) if output is not None else None
        metrics = evaluate_split(
            source.load(), chosen, source.classes, batch_size=batch_size, max_images=max_images
        )  # fmt: skip
        summary, per_class = metrics.compute(), metrics.compute_per_class()
        report(metrics, f"{source.path} on {split} of {data_dir}")
        objects = sum(int(row["objects"]) for row in per_class.values())
        known = {field.name for field in fields(EvaluateResult)}
        results: dict[str, Any] = {"images": metrics.images, "objects": objects}
        results |= {name: _number(value) for name, value in summary.items() if name in known}
        if output is not None and directory is not None:
            record = {
                "model": str(source.path),
                "step": source.step,
                "split": split,
                "images": metrics.images,
                "objects": objects,
                "metrics": {name: _number(value) for name, value in summary.items()},
                "per_class": {
                    name: {metric: _number(value) for metric, value in row.items()} for name, row in per_class.items()
                },
            }
            (directory / METRICS_FILE).write_text(json.dumps(record, indent=1) + "\n")
            write_scalars(directory, summary, per_class, source.step)
            output.results = results
    return EvaluateResult(**results, output_dir=output_dir)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of training.

    Attributes:
        path: Its prefix, such as `model/ckpt-500`.
        step: The step it was saved at.
        model_dir: Directory of `train`.
        classes: Id -> name.
        digest: SHA-256 over its files and the configuration.
    """

    path: Path
    step: int
    model_dir: Path
    classes: Mapping[int, str]
    digest: str

    @classmethod
    def find(cls, model_dir: Path, which: str) -> "Checkpoint":
        """The checkpoint `best` (the latest where there is none), `latest` or of a step.

        Raises:
            UsageError: No such directory, or `which` is none of these.
            DataError: There is no such checkpoint, or it is damaged.
        """
        from mlcore.detection.checkpoints import find_checkpoint, read_best
        from mlcore.detection.experiment import EXPERIMENT_FILE, describe_experiment

        if not model_dir.is_dir():
            raise UsageError(f"--model-dir={model_dir}: no such directory; expected a --model-dir of mlcore train")
        description = describe_experiment(model_dir)
        if which == "best" and read_best(model_dir) is None:
            log.info("%s has no best checkpoint (training did not evaluate): taking the latest", model_dir)
            which = "latest"
        path = find_checkpoint(model_dir, which)
        files = [*sorted(path.parent.glob(f"{path.name}.*")), model_dir / EXPERIMENT_FILE]
        return cls(
            path=path,
            step=int(path.name.rpartition("-")[2]),
            model_dir=model_dir,
            classes={number: name for number, name in enumerate(description["classes"], start=1) if name},
            digest=combined_digest(files),
        )

    def load(self) -> "Detector":
        """The detector, its weights restored."""
        return self.load_model()[0]

    def load_model(self) -> tuple[Any, Any, Any]:
        """The detector, the model inside it and the configuration."""
        from mlcore.detection import experiment
        from mlcore.detection.detectors import ModelDetector

        config = experiment.load_experiment(self.model_dir)
        experiment.set_precision(config)
        network = experiment.build_model(experiment.build_task(config))
        experiment.restore(network, self.path)
        return ModelDetector(network, config.task), network, config


@dataclass(frozen=True)
class Export:
    """An exported version.

    Attributes:
        path: Its directory.
        step: The step of the checkpoint in it; 0 where it does not say.
        classes: Id -> name.
        digest: SHA-256 over its graph and weights.
    """

    path: Path
    step: int
    classes: Mapping[int, str]
    digest: str

    @classmethod
    def find(cls, model: Path | None) -> "Export":
        """The version in a directory, or the highest of a base directory.

        Raises:
            UsageError: There is none.
            DataError: It does not say what its classes are.
        """
        from mlcore.data.label_map import read_label_map
        from mlcore.serving import version_directory

        assert model is not None
        path = version_directory.find_version(model)
        label_map = path / version_directory.LABEL_MAP
        if not label_map.is_file():
            raise DataError(f"{path}: no {version_directory.LABEL_MAP}; expected an export of mlcore export")
        saved = version_directory.read_card(path).get("checkpoint", {})
        step_number = int(saved.get("step", 0)) if isinstance(saved, dict) else 0
        return cls(path, step_number, read_label_map(label_map), version_directory.model_digest(path))

    def load(self) -> "Detector":
        """The detector, which runs the SavedModel in this process."""
        from mlcore.detection.detectors import ExportedDetector

        return ExportedDetector(self.path)


def combined_digest(files: list[Path]) -> str:
    """SHA-256 over the names and contents of files."""
    import hashlib

    lines = "".join(f"{file_digest(file)}  {file.name}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def _check_classes(data: Mapping[int, str], model: Mapping[int, str], data_dir: Path, source: Path) -> None:
    for number, name in data.items():
        if model.get(number) != name:
            theirs = f"calls it {model[number]!r}" if number in model else "has no such class"
            raise DataError(
                f"{data_dir}: class {number} is {name!r}, but {source} {theirs}; evaluate on records that were "
                "converted with the label map the model was trained with (mlcore convert --label-map)"
            )


def report(metrics: "CocoMetrics", what: str) -> None:
    """Write the table of an evaluation to the log."""
    from mlcore.detection.metrics import format_table

    table = format_table(metrics.compute(), metrics.compute_per_class(), images=metrics.images)
    log.info("%s\n%s", what, table)


def write_scalars(
    directory: Path, summary: Mapping[str, float], per_class: Mapping[str, Mapping[str, float]], global_step: int
) -> None:
    """Write metrics as TensorBoard scalars: the tags are the names, those of classes `per_class/<class>/<name>`."""
    from mlcore.runtime.extras import require

    tensorflow = require("tensorflow", "detection")
    writer = tensorflow.summary.create_file_writer(str(directory))
    with writer.as_default(step=global_step):
        for name, value in summary.items():
            if not math.isnan(value):
                tensorflow.summary.scalar(name, value)
        for class_name, row in per_class.items():
            for name, value in row.items():
                if not math.isnan(value):
                    tensorflow.summary.scalar(f"per_class/{class_name}/{name}", value)
    writer.close()


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
