"""What a confusion matrix tells: accuracy, a table by class, a CSV file and a picture. No TensorFlow."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mlcore.runtime.outputs import atomic_file

if TYPE_CHECKING:
    from PIL import Image

Confusion = npt.NDArray[np.int64]  # [label, answer] -> count


@dataclass(frozen=True)
class ClassMetrics:
    """How one class was recognised.

    Attributes:
        name: Of the class.
        examples: Examples that have it as their label.
        precision: Share of the answers with this class that are right.
        recall: Share of the examples of this class that were answered right.
        f1: Harmonic mean of the two.
        most_taken_for: The class that its examples were most often wrongly taken for; empty if none was.
    """

    name: str
    examples: int
    precision: float
    recall: float
    f1: float
    most_taken_for: str


def confusion_matrix(labels: npt.NDArray[np.integer], answers: npt.NDArray[np.integer], classes: int) -> Confusion:
    """[label, answer] -> count."""
    flat = labels.astype(np.int64) * classes + answers.astype(np.int64)
    return np.bincount(flat, minlength=classes * classes).reshape(classes, classes).astype(np.int64)


def accuracy_of(confusion: Confusion) -> float:
    """Share of right answers."""
    return float(np.trace(confusion) / max(confusion.sum(), 1))


def by_class(confusion: Confusion, classes: Sequence[str]) -> list[ClassMetrics]:
    """One entry a class, in the order of the labels. A share of nothing is 0."""
    entries = []
    for index, name in enumerate(classes):
        right = int(confusion[index, index])
        examples, answers = int(confusion[index].sum()), int(confusion[:, index].sum())
        wrong = confusion[index].copy()
        wrong[index] = 0
        entries.append(
            ClassMetrics(
                name=name,
                examples=examples,
                precision=right / answers if answers else 0.0,
                recall=right / examples if examples else 0.0,
                f1=2 * right / (examples + answers) if examples + answers else 0.0,
                most_taken_for=classes[int(wrong.argmax())] if wrong.any() else "",
            )
        )
    return entries


def write_confusion_csv(path: Path, confusion: Confusion, classes: Sequence[str]) -> None:
    """A header with the answers, then one row for each label."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["label", *classes])
    for name, row in zip(classes, confusion.tolist(), strict=True):
        writer.writerow([name, *row])
    with atomic_file(path) as temporary:
        temporary.write_text(text.getvalue())


def confusion_picture(confusion: Confusion, classes: Sequence[str], cell: int = 44) -> Image.Image:
    """A row for each label, a column for each answer; the darker, the larger the share of the row.

    The diagonal is blue, mistakes are red and twenty times as strong, since there are few of them.
    """
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(13)
    measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    margin = 44 + int(max(measure.textlength(name, font=font) for name in classes))
    count = len(classes)
    side = margin + cell * count + 12
    image = Image.new("RGB", (side, side), "white")
    draw = ImageDraw.Draw(image)
    draw.text((margin, 4), "answer", fill="#555555", font=font)
    draw.text((4, margin - 18), "label", fill="#555555", font=font)
    for index, name in enumerate(classes):
        middle = margin + cell * index + cell // 2
        draw.text((margin - 8, middle), name, fill="black", font=font, anchor="rm")
        draw.text((middle, margin - 8), name[: max(1, cell // 8)], fill="black", font=font, anchor="mb")
    totals = np.maximum(confusion.sum(axis=1), 1)
    for row in range(count):
        for column in range(count):
            value = int(confusion[row, column])
            share = value / totals[row] if row == column else min(1.0, 20 * value / totals[row])
            strong = (30, 90, 160) if row == column else (200, 40, 40)
            colour = tuple(round(255 - (255 - part) * share) for part in strong)
            left, top = margin + column * cell, margin + row * cell
            draw.rectangle((left, top, left + cell - 2, top + cell - 2), fill=colour)
            if value:
                ink = "white" if share > 0.55 else "black"
                draw.text((left + cell // 2 - 1, top + cell // 2 - 1), str(value), fill=ink, font=font, anchor="mm")
    return image


def write_confusion_png(path: Path, confusion: Confusion, classes: Sequence[str]) -> None:
    """`confusion_picture` as a file."""
    with atomic_file(path) as temporary:
        confusion_picture(confusion, classes).save(temporary, "PNG", optimize=True)
