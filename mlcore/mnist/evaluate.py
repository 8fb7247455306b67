"""The step `mnist-evaluate`: how well an exported classifier does on the test examples."""

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from mlcore.data.mnist import Examples, load_mnist
from mlcore.runtime.errors import DataError, UsageError
from mlcore.runtime.outputs import OutputDirectory
from mlcore.runtime.parameters import Environment, Range, step
from mlcore.serving.version_directory import SAVED_MODEL, find_version, model_digest, read_card

log = logging.getLogger(__name__)

STEP = "mnist-evaluate"
_BATCH = 1000


@dataclass(frozen=True)
class MnistEvaluateResult:
    """How an exported model did.

    Attributes:
        accuracy: Share of right answers.
        loss: Mean cross-entropy.
        examples: Examples that were asked.
        worst_class: The class with the least recall.
        worst_recall: Its recall.
    """

    accuracy: float
    loss: float
    examples: int
    worst_class: str
    worst_recall: float


@step
def mnist_evaluate(
    *,
    model: Annotated[Path, Environment(("MNIST_MODELS_DIR",))],
    data_dir: Annotated[Path, Environment(("MNIST_DATA_DIR",))],
    output_dir: Path | None = None,
    acceptable_accuracy: Annotated[float, Range(min=0, max=1)] = 0.0,
    overwrite: bool = False,
) -> MnistEvaluateResult:
    """Evaluate an exported MNIST classifier: accuracy, a table by class, the confusion matrix.

    With --output-dir it writes metrics.json, classes.csv, confusion.csv, confusion.png and report.html.

    Args:
        model: Directory of a version that mlcore mnist-train exported, or of several, of which the highest is taken.
        data_dir: Directory of the four IDX files, or of the arrays of mlcore mnist-download; the test part is used.
        output_dir: Directory for the tables, the picture and the report; not given: only the numbers are printed.
        acceptable_accuracy: Least accuracy; below it the step ends with 65, after it has written everything.
        overwrite: Replace an evaluation of another model or other data.

    Returns:
        The numbers.

    Raises:
        UsageError: There is no model, or no data.
        DataError: The data is damaged or does not fit the model, or the accuracy is not acceptable.
    """
    version = find_version(model)
    data = load_mnist(data_dir)
    output = None
    if output_dir is not None:
        inputs = {"model": model_digest(version), "data": data.version}
        output = OutputDirectory(
            output_dir, step=STEP, parameters={}, inputs=inputs, reads=[version, data_dir], overwrite=overwrite
        )
        if (done := output.existing()) is not None:
            return _accepted(MnistEvaluateResult(**done["results"]), acceptable_accuracy)

    from mlcore.mnist.metrics import accuracy_of, by_class, confusion_matrix

    classes = _classes(version, data.classes)
    class_ids, loss = _answers(version, data.t10k, len(classes))
    confusion = confusion_matrix(data.t10k.labels, class_ids, len(classes))
    table = by_class(confusion, classes)
    worst = min((entry for entry in table if entry.examples), key=lambda entry: entry.recall)
    result = MnistEvaluateResult(
        accuracy=accuracy_of(confusion),
        loss=loss,
        examples=len(data.t10k),
        worst_class=worst.name,
        worst_recall=worst.recall,
    )
    if output is not None:
        from mlcore.mnist.metrics import write_confusion_csv, write_confusion_png
        from mlcore.mnist.pages import write_evaluation_page

        output.results = asdict(result)
        with output.writing() as directory:
            record = {**asdict(result), "model": str(version), "classes": [asdict(entry) for entry in table]}
            (directory / "metrics.json").write_text(json.dumps(record, indent=1) + "\n")
            write_confusion_csv(directory / "confusion.csv", confusion, classes)
            write_confusion_png(directory / "confusion.png", confusion, classes)
            write_evaluation_page(
                directory / "report.html",
                confusion=confusion,
                classes=classes,
                facts={"loss": loss, "examples": result.examples, "worst class": f"{worst.name} ({worst.recall:.4f})"},
                model=f"{version.parent.name}/{version.name}",
            )
    log.info("%s: accuracy %.4f on %d examples", version, result.accuracy, result.examples)
    return _accepted(result, acceptable_accuracy)


def _accepted(result: MnistEvaluateResult, least: float) -> MnistEvaluateResult:
    if result.accuracy < least:
        raise DataError(f"the accuracy is {result.accuracy:.4f}, expected at least --acceptable-accuracy={least:g}")
    return result


def _classes(version: Path, of_data: tuple[str, ...]) -> tuple[str, ...]:
    """Names of the classes as the model has them; those of the data where it does not say."""
    named = read_card(version).get("classes")
    if not isinstance(named, dict):
        return of_data
    if len(named) < len(of_data):
        raise DataError(f"{version}: the model knows {len(named)} classes, the data has {len(of_data)}")
    return tuple(str(named[str(number)]) for number in range(len(named)))


def _answers(version: Path, examples: Examples, classes: int) -> tuple[Any, float]:
    """The class of each example, as the model's signature gives it, and the mean loss."""
    import numpy as np

    from mlcore.mnist.tensorflow import tf

    try:
        predict = tf.saved_model.load(str(version)).signatures["serving_default"]
    except (tf.errors.OpError, OSError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise DataError(f"{version / SAVED_MODEL}: cannot be loaded as a classifier ({reason})") from error
    inputs = predict.structured_input_signature[1]
    expected = (*examples.imgs.shape[1:], 1)
    if "imgs" not in inputs or not inputs["imgs"].shape.is_compatible_with((None, *expected)):
        takes = ", ".join(f"{name} {list(spec.shape)}" for name, spec in inputs.items())
        raise UsageError(f"{version}: the model takes {takes}; the data has images for imgs {[None, *expected]}")
    missing = {"class_ids", "probabilities"} - set(predict.structured_outputs)
    if missing:
        raise UsageError(f"{version}: the model has no output {', '.join(sorted(missing))}")
    class_ids, losses = [], 0.0
    for begin in range(0, len(examples), _BATCH):
        part = examples[begin : begin + _BATCH]
        outputs = predict(imgs=tf.constant(part.imgs[..., None].astype(np.float32) / 255.0))
        probabilities = outputs["probabilities"].numpy()
        if probabilities.shape[1] != classes:
            raise DataError(f"{version}: the model gives {probabilities.shape[1]} probabilities, expected {classes}")
        of_label = probabilities[np.arange(len(part)), part.labels]
        losses += float(-np.log(np.maximum(of_label, 1e-30, dtype=np.float64)).sum())
        class_ids.append(outputs["class_ids"].numpy())
    return np.concatenate(class_ids), losses / len(examples)
