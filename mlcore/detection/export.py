"""The step `export`: a checkpoint as a SavedModel that TensorFlow alone can serve."""

import importlib.metadata
import json
import logging
import platform
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from mlcore.runtime.errors import DataError, UsageError
from mlcore.runtime.parameters import Range, step

if TYPE_CHECKING:
    from mlcore.detection.evaluate import Checkpoint
    from mlcore.detection.signatures import ServingFunctions
    from mlcore.detection.verification import Agreement

log = logging.getLogger(__name__)

PICTURES = 8  # compared before an export is published
_PACKAGES = ("mlcore", "tensorflow", "tf-keras", "tf-models-official", "numpy")


@dataclass(frozen=True)
class ExportResult:
    """Where the model is.

    Attributes:
        version: Its number.
        path: Its directory, `<output_dir>/<version>`.
        step: The step of the checkpoint in it.
        detections: Detections that were compared with the checkpoint's own.
    """

    version: int
    path: Path
    step: int
    detections: int


@step
def export(
    *,
    model_dir: Path,
    output_dir: Path,
    version: Annotated[int, Range(min=1, max=2**63 - 1)] | None = None,
    checkpoint: str = "best",
    data_dir: Path | None = None,
    frozen_graph: bool = False,
    tflite: bool = False,
) -> ExportResult:
    """Export a checkpoint as a numbered version of a SavedModel for TensorFlow Serving, KServe and `mlcore predict`.

    `<output_dir>/<version>/` holds one SavedModel with the signatures serving_default (image_tensor: uint8 pixels),
    image_bytes (encoded pictures) and tf_example, for any number of pictures of any size; its outputs have the names,
    types and normalised boxes of the Object Detection API. `assets.extra/` has the label map and model.json. It is
    loaded in a fresh process and compared with the checkpoint's own detections before it appears, by one rename.

    Args:
        model_dir: Directory of `mlcore train`.
        output_dir: Base directory of the versions, which a server may be watching.
        version: Number of the version. Default: one more than the highest there is.
        checkpoint: best (of the evaluations during training; the latest where it kept none), latest, or the number of a
            step.
        data_dir: Records whose pictures are compared. Default: those that the model was trained on.
        frozen_graph: Also write assets.extra/frozen_inference_graph.pb, with the node names of the Object Detection API
            (image_tensor, detection_boxes, ...).
        tflite: Also write assets.extra/model.tflite, for RetinaNet.

    Raises:
        UsageError: The model directory or the records are not there, or the model cannot be had as TFLite.
        DataError: The checkpoint is damaged, the version is taken by another model, or the export does not find what
            the checkpoint finds.
        TransientError: The disk is full.
    """
    from mlcore.detection.evaluate import Checkpoint
    from mlcore.serving.version_directory import VersionDirectory

    chosen = Checkpoint.find(model_dir, checkpoint)
    if tflite:
        _require_retinanet(model_dir)
    output = VersionDirectory(
        output_dir,
        step="export",
        parameters={"frozen_graph": frozen_graph, "tflite": tflite},
        inputs={"checkpoint": chosen.digest, "versions": package_versions()},
        version=version,
    )
    if (done := output.existing()) is not None:
        assert output.version is not None
        return ExportResult(**done["results"], version=output.version, path=output.path)

    from mlcore.detection.experiment import describe_experiment
    from mlcore.detection.verification import FreshProcess, Selection, check

    with FreshProcess() as fresh, output.writing() as directory:
        detector, model, config = chosen.load_model()
        pictures = verification_pictures(describe_experiment(model_dir), data_dir)
        save(detector.functions, model, directory)
        if frozen_graph:
            write_frozen_graph(detector.functions, directory)
        write_extras(directory, chosen)
        expected = detector.detect(pictures)
        scratch = directory / ".verification"
        agreement = check(expected, fresh.run(directory, pictures, scratch), selection=Selection.of(config.task))
        shutil.rmtree(scratch)
        if tflite:
            from mlcore.detection.tflite import write_tflite

            write_tflite(
                directory,
                model=model,
                config=config,
                functions=detector.functions,
                pictures=pictures,
                expected=expected,
            )
        write_card(directory, chosen, detector.functions, model, agreement)
        if not agreement.detections:
            log.warning("the checkpoint finds nothing in %d pictures: there was little to compare", len(pictures))
        output.results = {"step": chosen.step, "detections": agreement.detections}
    assert output.version is not None
    log.info(
        "version %d in %s: step %d, the same %d detections in %d pictures",
        output.version, output.path, chosen.step, agreement.detections, len(pictures),
    )  # fmt: skip
    return ExportResult(**output.results, version=output.version, path=output.path)


def _require_retinanet(model_dir: Path) -> None:
    from mlcore.detection.experiment import describe_experiment

    experiment = str(describe_experiment(model_dir)["experiment"])
    if not experiment.startswith("retinanet"):
        raise UsageError(f"--tflite=true: {experiment} cannot be converted to TFLite, RetinaNet alone can")


def package_versions() -> dict[str, str]:
    """Package -> version of those that shape an export, and of Python."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        for distribution in (name, f"{name}-cpu"):  # tensorflow is also packaged as tensorflow-cpu
            try:
                found[name] = importlib.metadata.version(distribution)
                break
            except importlib.metadata.PackageNotFoundError:
                continue
    return found


def verification_pictures(description: Mapping[str, Any], data_dir: Path | None) -> list[bytes]:
    """Real pictures from the records, or generated ones where the records of the training are gone (with a warning).

    Args:
        description: What `experiment.yaml` says.
        data_dir: Records to take instead of those of the training.

    Raises:
        UsageError: `data_dir` is not there.
        DataError: Its records are damaged.
    """
    from mlcore.data.records import RecordSet
    from mlcore.detection.truth import read_truth

    if data_dir is None:
        trained_on = Path((description.get("data") or {}).get("path") or "")
        if not trained_on.name or not trained_on.is_dir():
            log.warning("the records of the training are gone: comparing on generated pictures (see --data-dir)")
            return generated_pictures()
        data_dir = trained_on
    records = RecordSet.open(data_dir)
    split = next(name for name in ("test", "val", *records.splits) if name in records.splits)
    return [read_truth(record)[1] for record in _first_records(records.shards(split), PICTURES)]


def _first_records(shards: Sequence[Path], count: int) -> list[bytes]:
    from mlcore.data.tfrecord import read_records

    records: list[bytes] = []
    for shard in shards:
        for record in read_records(shard):
            if len(records) == count:
                return records
            records.append(record)
    return records


def generated_pictures() -> list[bytes]:
    """Pictures of coloured rectangles, always the same."""
    import io

    from PIL import Image

    generator = np.random.default_rng(0)
    pictures = []
    for _ in range(PICTURES):
        pixels = generator.integers(0, 256, (1, 1, 3), np.uint8).repeat(240, 0).repeat(320, 1)
        for _ in range(6):
            top, left = generator.integers(0, (200, 280))
            height, width = generator.integers(20, 120, 2)
            pixels[top : top + height, left : left + width] = generator.integers(0, 256, 3)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "png")
        pictures.append(buffer.getvalue())
    return pictures


def save(functions: "ServingFunctions", model: Any, directory: Path) -> None:
    """Write the SavedModel.

    What is saved owns the variables and nothing else of the model: with the model's layers tf_keras would trace and
    save each one's own functions too, which takes most of a minute, and loading them again a quarter of one.
    """
    from mlcore.detection.detectors import IMAGE_BYTES
    from mlcore.detection.signatures import DEFAULT_SIGNATURE, TF_EXAMPLE
    from mlcore.detection.tensorflow import import_tensorflow

    tf = import_tensorflow()
    module = tf.Module()
    module.model_variables = list(model.variables)
    signatures = {
        DEFAULT_SIGNATURE: functions.image_tensor.get_concrete_function(),
        IMAGE_BYTES: functions.image_bytes.get_concrete_function(),
        TF_EXAMPLE: functions.tf_example.get_concrete_function(),
    }
    tf.saved_model.save(module, str(directory), signatures=signatures)


def write_frozen_graph(functions: "ServingFunctions", directory: Path) -> None:
    """Write the default signature as a graph with constants for weights, for tools that take nothing newer."""
    from mlcore.detection.tensorflow import import_tensorflow
    from mlcore.detection.verification import FROZEN_GRAPH, FROZEN_INPUT
    from mlcore.serving.version_directory import EXTRA

    tf = import_tensorflow()
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    spec = tf.TensorSpec([None, None, None, 3], tf.uint8, FROZEN_INPUT)
    concrete = tf.function(functions.image_tensor.python_function, autograph=False).get_concrete_function(spec)
    names = sorted(concrete.structured_outputs)
    frozen = convert_variables_to_constants_v2(concrete)
    graph = frozen.graph.as_graph_def()
    for name, tensor in zip(names, frozen.outputs, strict=True):  # freezing calls them Identity, Identity_1, ...
        node = graph.node.add(name=name, op="Identity", input=[tensor.name])
        node.attr["T"].type = tensor.dtype.as_datatype_enum
    (directory / EXTRA).mkdir(exist_ok=True)
    (directory / EXTRA / FROZEN_GRAPH).write_bytes(graph.SerializeToString(deterministic=True))


def write_extras(directory: Path, chosen: "Checkpoint") -> None:
    """Write the label map."""
    from mlcore.data.label_map import format_label_map
    from mlcore.serving.version_directory import EXTRA, LABEL_MAP

    (directory / EXTRA).mkdir(exist_ok=True)
    (directory / LABEL_MAP).write_text(format_label_map(chosen.classes), encoding="utf-8")


def write_card(
    directory: Path, chosen: "Checkpoint", functions: "ServingFunctions", model: Any, agreement: "Agreement"
) -> None:
    """Write model.json: what one wants to know of a model years later."""
    from mlcore.detection.experiment import SECTIONS, describe_experiment
    from mlcore.serving import version_directory

    description = describe_experiment(chosen.model_dir)
    card = {
        "task": "detection",
        "experiment": description["experiment"],
        "preset": description.get("preset"),
        "checkpoint": {"name": chosen.path.name, "step": chosen.step, "sha256": chosen.digest},
        "classes": {str(number): name for number, name in chosen.classes.items()},
        "input_size": list(functions.input_size),
        "signatures": describe_signatures(functions),
        "training_data": {name: value for name, value in (description.get("data") or {}).items() if name != "path"},
        "metrics": known_metrics(chosen),
        "verification": asdict(agreement),
        "weights": int(sum(np.prod(variable.shape) for variable in model.variables)),
        "parameters": {name: description.get(name) for name in ("seed", *SECTIONS)},
        "versions": package_versions(),
    }
    version_directory.write_card(directory, card)


def describe_signatures(functions: "ServingFunctions") -> dict[str, Any]:
    """Signature -> inputs and outputs -> name -> dtype and shape (null: any)."""
    from mlcore.detection.detectors import IMAGE_BYTES
    from mlcore.detection.signatures import DEFAULT_SIGNATURE, TF_EXAMPLE

    def describe(tensors: Mapping[str, Any]) -> dict[str, Any]:
        return {
            name: {"dtype": tensor.dtype.name, "shape": tensor.shape.as_list()}
            for name, tensor in sorted(tensors.items())
        }

    described = {}
    for name, function in (
        (DEFAULT_SIGNATURE, functions.image_tensor),
        (IMAGE_BYTES, functions.image_bytes),
        (TF_EXAMPLE, functions.tf_example),
    ):
        concrete = function.get_concrete_function()
        ((spec,), _) = concrete.structured_input_signature
        described[name] = {"inputs": describe({spec.name: spec}), "outputs": describe(concrete.structured_outputs)}
    return described


def known_metrics(chosen: "Checkpoint") -> dict[str, Any]:
    """What is known of this checkpoint: split -> metrics, from `evaluate`; and the value that made it the best."""
    from mlcore.detection.checkpoints import read_best
    from mlcore.detection.evaluate import EVALUATIONS, METRICS_FILE

    metrics: dict[str, Any] = {}
    best = read_best(chosen.model_dir)
    if best is not None and best.step == chosen.step:
        metrics["training"] = {best.metric: best.value}
    for file in sorted((chosen.model_dir / EVALUATIONS).glob(f"*/{METRICS_FILE}")):
        try:
            record = json.loads(file.read_text())
            if record["step"] == chosen.step:
                metrics[str(record["split"])] = {**record["metrics"], "images": record["images"]}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{file}: cannot be read ({error}); expected the metrics of mlcore evaluate") from error
    return metrics
