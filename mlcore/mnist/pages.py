"""The report pages and pictures of training and evaluation. No TensorFlow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlcore.mnist.metrics import Confusion, accuracy_of, by_class, confusion_picture

if TYPE_CHECKING:
    from mlcore.data.report import Report
    from mlcore.mnist.curves import Point

CLASS_COLUMNS = ("class", "examples", "precision", "recall", "f1", "most often taken for")


def class_rows(confusion: Confusion, classes: Sequence[str]) -> list[tuple[Any, ...]]:
    """Rows of the table by class, under `CLASS_COLUMNS`."""
    return [
        (entry.name, entry.examples, entry.precision, entry.recall, entry.f1, entry.most_taken_for)
        for entry in by_class(confusion, classes)
    ]


def add_test(report: Report, confusion: Confusion, classes: Sequence[str]) -> None:
    """The sections that tell how the test examples were recognised."""
    report.section("By class").table(CLASS_COLUMNS, class_rows(confusion, classes), limit=None)
    picture = confusion_picture(confusion, classes)
    report.section(
        "Confusion", "Each row is a label, each column an answer. Mistakes are drawn twenty times as strong."
    )
    report.images("", [(picture, "confusion matrix of the test examples")], width=picture.width)


def write_training_page(
    path: Path,
    *,
    points: Sequence[Point],
    confusion: Confusion,
    classes: Sequence[str],
    facts: Mapping[str, Any],
    parameters: Mapping[str, Any],
) -> None:
    """The report of a training: what was reached, the curves, the classes, the parameters."""
    from mlcore.data.report import Report

    report = Report("MNIST: training", "A dense network, its learning curves and how it does on the test examples.")
    report.facts({"test accuracy": accuracy_of(confusion), **facts})
    curves: dict[str, dict[str, list[tuple[float, float]]]] = {"loss": {}, "accuracy": {}}
    for point in points:
        for name, value in (("loss", point.loss), ("accuracy", point.accuracy)):
            curves[name].setdefault(point.part, []).append((point.step, value))
    report.section("Curves")
    for name, series in curves.items():
        report.lines(name.capitalize(), series, x_label="step", y_label=name)
    add_test(report, confusion, classes)
    rows = [(name, _text(value)) for name, value in parameters.items()]
    report.section("Parameters").table(("parameter", "value"), rows, limit=None)
    report.write(path)


def write_evaluation_page(
    path: Path, *, confusion: Confusion, classes: Sequence[str], facts: Mapping[str, Any], model: str
) -> None:
    """The report of an evaluation."""
    from mlcore.data.report import Report

    report = Report("MNIST: evaluation", f"The exported model {model} on the test examples.")
    report.facts({"accuracy": accuracy_of(confusion), **facts})
    add_test(report, confusion, classes)
    report.write(path)


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
