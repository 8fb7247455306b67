"""`predict --server`: pictures in, boxes or classes out, by a model that a server has."""

import json
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlcore.data.label_map import read_label_map
from mlcore.detection.pictures import Picture, find_pictures, pictures_digest
from mlcore.detection.predict import PredictResult
from mlcore.detection.predictions import (
    PREDICTIONS,
    Run,
    check_again,
    check_unreadable,
    latency_rows,
    named,
    read_ahead,
)
from mlcore.runtime.errors import UsageError
from mlcore.runtime.outputs import OutputDirectory
from mlcore.runtime.progress import Progress
from mlcore.serving.clients import Protocol, connect
from mlcore.serving.clients.access import Access
from mlcore.serving.clients.client import ModelClient, RequestRefusedError
from mlcore.serving.grey import RULE, as_grey
from mlcore.serving.served import CLASS_IDS, NAMES, PROBABILITIES, ServedClassifier, ServedDetector, Target, find_target

if TYPE_CHECKING:
    from mlcore.serving.grey import Grey

log = logging.getLogger(__name__)

_BATCH = 16  # pictures that are read ahead at a time, at least; more where there are more requests at a time
_SHEET = 60  # pictures in report.html


def predict_served(
    *,
    server: str,
    protocol: Protocol,
    model_name: str,
    signature: str | None,
    access: Access,
    deadline_s: float,
    concurrency: int,
    input: Sequence[str],
    output_dir: Path,
    min_score: float,
    max_detections: int,
    label_map: Path | None,
    draw: bool,
    max_bad_fraction: float,
    overwrite: bool,
) -> PredictResult:
    """Ask a served model about pictures; arguments as of `predict`."""
    found = find_pictures(input, output_dir=output_dir)
    classes = read_class_names(label_map)
    with connect(server, protocol, model_name, deadline_s=deadline_s, access=access) as client:
        target = find_target(client, signature)
        version = target.version or _served_version(client)
        parameters: dict[str, Any] = {"signature": target.signature, "classes": classes}
        if target.task == "detection":
            parameters |= {"min_score": min_score, "max_detections": max_detections, "draw": draw}
        where = {"server": str(client.server), "protocol": protocol, "name": model_name, "version": version}
        output = OutputDirectory(
            output_dir,
            step="predict",
            parameters=parameters,
            inputs={"model": where, "pictures": pictures_digest(found)},
            reads=[picture.path for picture in found],
            overwrite=overwrite,
        )
        if (done := output.existing()) is not None:
            if version is not None:
                check_again(output_dir, max_bad_fraction)
                return PredictResult(**done["results"], model=None, output_dir=output_dir, server=server)
            log.info("%s does not tell the version of the model, so it is asked again", client)
            output.overwrite = True
        batch = max(_BATCH, 2 * concurrency)
        name = f"{model_name} (version {version or 'unknown'}) at {client.server}, asked by {protocol}"
        described = where | {"signature": target.signature}
        with output.writing() as staging:
            if target.task == "detection":
                with ServedDetector(client, target, concurrency) as detector:
                    run = Run(
                        detector.detect_each, classes, staging,
                        min_score=min_score, max_detections=max_detections, draw=draw,
                    )  # fmt: skip
                    run.over(found, batch)
                    latency = detector.latencies.summary()
                run.check(max_bad_fraction)
                run.write(described, name, latency)
                output.results = dict(run.counts())
            else:
                work = _Classification(client, target, concurrency, classes, staging)
                latency = work.over(found, batch)
                check_unreadable(work.unreadable, len(work.images), max_bad_fraction)
                work.write(described, name, latency)
                output.results = {"images": len(work.images), "unreadable": len(work.unreadable), "detections": None}
            output.results |= {key: value for key, value in latency.items() if key in ("p50_ms", "p95_ms", "p99_ms")}
    return PredictResult(**output.results, model=None, output_dir=output_dir, server=server)


def _served_version(client: ModelClient) -> int | None:
    """The highest version that a server says it has ready."""
    try:
        states = client.versions()
    except (UsageError, RequestRefusedError):
        return None
    return max((number for number, state in states.items() if state in ("AVAILABLE", "READY")), default=None)


def read_class_names(path: Path | None) -> dict[int, str]:
    """Class id -> name from a label map, or from a text file with a name a line, from class 0; empty for None.

    Raises:
        UsageError: There is no such file.
    """
    if path is None:
        return {}
    if path.suffix != ".txt":
        return read_label_map(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--label-map={path}: cannot be read ({error})") from error
    return dict(enumerate(line.strip() for line in lines if line.strip()))


class _Classification:
    """Reads and classifies pictures, and writes what was found."""

    def __init__(
        self, client: ModelClient, target: Target, concurrency: int, classes: Mapping[int, str], directory: Path
    ) -> None:
        self.client, self.target, self.concurrency = client, target, concurrency
        self.classes = dict(classes)
        self.directory = directory
        self.images: list[dict[str, Any]] = []
        self.unreadable: list[dict[str, str]] = []
        self._sheet: list[tuple[Any, str]] = []

    def over(self, pictures: Sequence[Picture], batch_size: int) -> dict[str, float]:
        """Everything about every picture, in their order; the summary of the latencies."""
        with (
            ServedClassifier(self.client, self.target, self.concurrency) as classifier,
            ThreadPoolExecutor(2) as pool,
            Progress("predict", len(pictures), "images") as progress,
        ):
            rows, columns = classifier.image_shape

            def one(grey: "Grey") -> dict[str, Any] | RequestRefusedError:
                try:
                    return classifier.classify(grey.pixels[np.newaxis])
                except RequestRefusedError as error:
                    return error

            for batch in read_ahead(pool, pictures, batch_size):
                greys = {
                    item.index: as_grey(item.pixels.rgb, rows, columns) for item in batch if item.pixels is not None
                }
                answers = dict(zip(greys, classifier.each(one, greys.values()), strict=True))
                for item in batch:
                    answer = answers.get(item.index)
                    if answer is None or isinstance(answer, RequestRefusedError):
                        reason = item.problem or str(answer)
                        log.warning("%s: %s", item.picture.path, reason)
                        self.unreadable.append(named(item.picture) | {"reason": reason})
                    else:
                        self._record(item.picture, greys[item.index], answer)
                progress.update(len(batch))
        return classifier.latencies.summary()

    def _record(self, picture: Picture, grey: "Grey", answer: Mapping[str, Any]) -> None:
        class_id = int(answer[CLASS_IDS][0])
        name = self.classes.get(class_id)
        if name is None and NAMES in answer:
            name = answer[NAMES][0].decode(errors="replace")
        name = name or str(class_id)
        record = {**named(picture), "class_id": class_id, "class": name, "inverted": grey.inverted}
        words = name
        if PROBABILITIES in answer:
            values = answer[PROBABILITIES][0]
            record["probability"] = round(float(values[class_id]), 6) if class_id < len(values) else None
            record["probabilities"] = [round(float(value), 6) for value in values]
            if record["probability"] is not None:
                words = f"{name} {record['probability']:.1%}"
        self.images.append(record)
        if len(self._sheet) < _SHEET:
            from PIL import Image

            small = Image.fromarray(grey.pixels)
            factor = max(1, 112 // max(small.size))
            shown = small.resize((factor * small.width, factor * small.height), Image.Resampling.NEAREST)
            self._sheet.append((shown, f"{picture.name}: {words}"))

    def write(self, model: Mapping[str, Any], name: str, latency: Mapping[str, float]) -> None:
        """The JSON file and the report."""
        from mlcore.data.report import Report

        predictions = {
            "model": dict(model),
            "rule": RULE,
            "images": self.images,
            "unreadable": self.unreadable,
            "latency": dict(latency),
        }
        (self.directory / PREDICTIONS).write_text(json.dumps(predictions, indent=1) + "\n")
        counts: dict[str, int] = {}
        for image in sorted(self.images, key=lambda image: image["class_id"]):
            counts[image["class"]] = counts.get(image["class"], 0) + 1
        report = Report("Predictions", f"By the model {name}. {RULE}")
        report.facts({"pictures": len(self.images), "unreadable": len(self.unreadable)})
        few = f"the first {len(self._sheet)} of {len(self.images)}" if len(self._sheet) < len(self.images) else "all"
        report.section("Pictures").images(f"Pictures as they were sent, {few}", self._sheet, width=160)
        report.section("Classes").bars("Pictures by class", counts)
        report.section("Latency").table(["", "ms"], latency_rows(latency), "Time of a request with one picture")
        if self.unreadable:
            report.section("Unreadable pictures")
            report.table(["file", "reason"], [[entry["file"], entry["reason"]] for entry in self.unreadable])
        report.write(self.directory / "report.html")
