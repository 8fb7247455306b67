"""Samples with their truth, sent to a served model, and how well its answers do."""

import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mlcore.data.idx import Array
from mlcore.data.mnist import Examples, load_mnist
from mlcore.data.records import RecordSet
from mlcore.data.tfrecord import read_records
from mlcore.detection.metrics import CocoMetrics, GroundTruth
from mlcore.detection.truth import read_truth
from mlcore.runtime.errors import DataError, UsageError
from mlcore.runtime.progress import Progress
from mlcore.serving.clients.client import RequestRefusedError, UnavailableError
from mlcore.serving.latency import summary_of
from mlcore.serving.served import CLASS_IDS, ServedClassifier, ServedDetector

log = logging.getLogger(__name__)

_BATCH = 32  # examples of a classifier in one request; their time is not the latency
_TIMED = 200  # requests with one example whose time is taken
_SHOWN = 24  # wrong answers in the report


@dataclass
class Measured:
    """What the samples showed.

    Attributes:
        samples: Samples that were sent.
        quality: `accuracy`, or `ap50`, `coco_ap` and so on.
        milliseconds: Time of each request with one sample.
        by_class: Class -> a row of numbers.
        wrong: Pictures that were taken for something else, and in words for what.
    """

    samples: int = 0
    quality: dict[str, float] = field(default_factory=dict)
    milliseconds: list[float] = field(default_factory=list)
    by_class: dict[str, dict[str, float]] = field(default_factory=dict)
    wrong: list[tuple[Array, str]] = field(default_factory=list)

    def latency(self) -> dict[str, float]:
        """Percentiles of the times."""
        return summary_of(self.milliseconds)


@dataclass(frozen=True)
class MnistSamples:
    """Pictures of a classifier's test part.

    Attributes:
        examples: Images and labels.
        classes: Names, in the order of the labels.
    """

    examples: Examples
    classes: tuple[str, ...]

    @classmethod
    def load(cls, data_dir: Path, count: int) -> "MnistSamples":
        """`count` examples of the test part, the same random ones each time.

        Raises:
            UsageError: There is no data set.
            DataError: It is damaged.
        """
        data = load_mnist(data_dir)
        total = len(data.t10k)
        picked = np.sort(np.random.default_rng(0).choice(total, min(count, total), replace=False))
        return cls(Examples(data.t10k.imgs[picked], data.t10k.labels[picked]), data.classes)

    def measure(self, classifier: ServedClassifier) -> Measured:
        """Accuracy over all of them, and the time of single requests."""
        imgs, labels = self.examples.imgs, self.examples.labels
        expected = classifier.image_shape
        if imgs.shape[1:] != expected:
            raise UsageError(
                f"{classifier.client} takes pictures of {expected[0]}x{expected[1]}, the data has "
                f"{imgs.shape[1]}x{imgs.shape[2]}"
            )
        found = Measured(samples=len(labels))
        answers: list[Array] = []
        with Progress("verify", len(labels), "samples") as progress:
            for begin in range(0, len(labels), _BATCH):
                part = imgs[begin : begin + _BATCH]
                answers.append(_asked(lambda part=part: classifier.classify(part), begin, len(labels))[CLASS_IDS])
                progress.update(len(part))
        class_ids = np.concatenate(answers)
        found.quality["accuracy"] = float((class_ids == labels).mean())
        for number, name in enumerate(self.classes):
            here = labels == number
            if here.any():
                right = int((class_ids[here] == number).sum())
                found.by_class[name] = {"samples": int(here.sum()), "right": right, "recall": right / int(here.sum())}
        for index in np.flatnonzero(class_ids != labels)[:_SHOWN]:
            found.wrong.append((imgs[index], f"{self._name(labels[index])}, taken for {self._name(class_ids[index])}"))
        for index in range(min(_TIMED, len(labels))):
            one = imgs[index : index + 1]
            started = time.monotonic()
            _asked(lambda one=one: classifier.classify(one), index, len(labels))
            found.milliseconds.append(1000 * (time.monotonic() - started))
        return found

    def _name(self, number: Any) -> str:
        return self.classes[int(number)] if 0 <= int(number) < len(self.classes) else f"class {int(number)}"

    def pictures(self, count: int) -> list[Array]:
        """The first so many."""
        return list(self.examples.imgs[:count])


@dataclass(frozen=True)
class DetectionSamples:
    """Pictures of a split of records.

    Attributes:
        classes: Id -> name.
        split: Name of the split.
        shards: Its files.
        count: How many of its pictures are used.
    """

    classes: Mapping[int, str]
    split: str
    shards: tuple[Path, ...]
    count: int

    @classmethod
    def load(cls, data_dir: Path, split: str, count: int) -> "DetectionSamples":
        """The first `count` pictures of a split.

        Raises:
            UsageError: There are no records, or no such split.
            DataError: The records are damaged.
        """
        records = RecordSet.open(data_dir)
        chosen = records.split(split)
        return cls(records.classes, split, chosen.shards, min(count, chosen.images))

    def __iter__(self) -> Iterator[tuple[GroundTruth, bytes]]:
        left = self.count
        for shard in self.shards:
            for record in read_records(shard):
                if not left:
                    return
                left -= 1
                yield read_truth(record)

    def measure(self, detector: ServedDetector) -> Measured:
        """COCO's metrics over all of them, and the time of each request."""
        metrics = CocoMetrics(self.classes)
        found = Measured(samples=self.count)
        with Progress("verify", self.count, "samples") as progress:
            for index, (truth, image) in enumerate(self):
                started = time.monotonic()
                detections = _asked(lambda image=image: detector.detect_one(image), index, self.count)
                found.milliseconds.append(1000 * (time.monotonic() - started))
                metrics.add(truth, detections)
                progress.update()
        if metrics.images != self.count:
            raise DataError(f"{self.shards[0].parent}: {metrics.images} images in {self.split}, expected {self.count}")
        summary = metrics.compute()
        found.quality = {name: summary[name] for name in ("ap50", "coco_ap", "ap75", "ar_100_detections")}
        found.by_class = metrics.compute_per_class()
        return found

    def pictures(self, count: int) -> list[bytes]:
        """The first so many, encoded."""
        return [image for _, (_, image) in zip(range(count), self, strict=False)]


def _asked(function: Any, index: int, total: int) -> Any:
    """An answer; an error says how far the samples came."""
    try:
        return function()
    except UnavailableError as error:
        raise UnavailableError(f"the server stopped answering after {index} of {total} samples: {error}") from error
    except RequestRefusedError as error:
        raise RequestRefusedError(f"sample {index} of {total} was refused: {error}", error.status) from error
