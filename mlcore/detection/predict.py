"""The step `predict`: pictures in, boxes out, by an exported model or by one that is served."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from mlcore.runtime.errors import UsageError
from mlcore.runtime.outputs import OutputDirectory
from mlcore.runtime.parameters import Range, step

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PredictResult:
    """What `predict` did.

    Attributes:
        images: Pictures that were read.
        unreadable: Pictures that were not, or that the server refused.
        detections: Boxes with at least the score asked for; not given for a classifier.
        model: Directory of the SavedModel; not given where a server was asked.
        server: Where the server listens, if one was asked.
        p50_ms: Half of the requests to the server took no longer, in milliseconds.
        p95_ms: 95 of 100 requests took no longer.
        p99_ms: 99 of 100 requests took no longer.
        output_dir: Where the results are.
    """

    images: int
    unreadable: int
    detections: int | None
    model: Path | None
    output_dir: Path
    server: str | None = None
    p50_ms: float | None = None
    p95_ms: float | None = None
    p99_ms: float | None = None


@step
def predict(
    *,
    input: tuple[str, ...],
    output_dir: Path,
    model: Path | None = None,
    server: str | None = None,
    protocol: Literal["tfs-grpc", "v1", "v2", "v2-grpc"] = "tfs-grpc",
    model_name: str | None = None,
    signature: str | None = None,
    host_header: str | None = None,
    token_file: Path | None = None,
    ca_file: Path | None = None,
    deadline_s: Annotated[float, Range(min=0.1)] = 60.0,
    concurrency: Annotated[int, Range(min=1, max=256)] = 4,
    min_score: Annotated[float, Range(min=0, max=1)] = 0.5,
    max_detections: Annotated[int, Range(min=1)] = 100,
    batch_size: Annotated[int, Range(min=1)] = 8,
    label_map: Path | None = None,
    draw: bool = True,
    max_bad_fraction: Annotated[float, Range(min=0, max=1)] = 0.5,
    overwrite: bool = False,
) -> PredictResult:
    """Find objects in pictures with an exported or a served model; draw them and write them as JSON.

    The output directory holds `images/` (each picture with its boxes), `predictions.json` (for each picture the boxes
    in pixels with class and score), `coco_results.json` (all detections in COCO's results format, for its tools) and
    `report.html`. Any format that Pillow reads is taken, turned as its EXIF says.

    With --server a model is asked that TensorFlow Serving, KServe or mlcore serve has; the results are the same, with
    the latency of the requests. TensorFlow is not needed then. A served classifier of grey pictures, such as MNIST's,
    gives `predictions.json` with the class and the probabilities of each picture, and `report.html`.

    Args:
        input: A picture, a folder (searched at any depth) or a glob such as 'photos/*.jpg'.
        output_dir: Directory for the results.
        model: Directory of an exported model, or its parent: then the highest version in it. Either this or --server.
        server: host:port of a model server, or an address with https:// for TLS. Either this or --model.
        protocol: How the server speaks: tfs-grpc is TensorFlow Serving's gRPC, v1 its REST (also KServe's V1), v2 and
            v2-grpc are the Open Inference Protocol.
        model_name: Name of the model on the server.
        signature: Signature of the served model. Default: image_bytes where it has that, else serving_default.
        host_header: Host to ask for, where an ingress routes by it (Knative, Istio): the service's, such as
            mnist.default.example.com. With TLS the certificate must have that name.
        token_file: File with a bearer token for the server, such as a service account's. Default: the environment
            variable MLCORE_SERVER_TOKEN, if it is set.
        ca_file: Certificates (PEM) of the authorities to trust in place of the system's, for https://.
        deadline_s: Longest time for one request, retries included, in seconds.
        concurrency: Most requests to the server at the same time.
        min_score: Lowest score of a box that is drawn and listed in predictions.json. coco_results.json has all of
            them, since average precision needs the low ones too.
        max_detections: Most boxes for one picture, the best first.
        batch_size: Pictures that go through the model at once; a server gets each in a request of its own.
        label_map: Names of the classes (.pbtxt; for a classifier also a text file with a name a line, from class 0).
            Default: the model's own; numbers where a server does not tell.
        draw: Write the pictures with boxes.
        max_bad_fraction: Share of unreadable pictures above which the step fails. Below it they are listed in
            predictions.json and in the report.
        overwrite: Replace results that were made from something else.

    Raises:
        UsageError: The model or an input is not there, or there are no pictures.
        DataError: The model is not a detection model, or too many pictures are unreadable.
        TransientError: The server does not answer within the deadline, or fails.
    """
    if (model is None) == (server is None):
        both = ", not both" if model is not None else ""
        raise UsageError(f"one of --model (a directory) and --server (a running model server) must be given{both}")
    if server is not None:
        if model_name is None:
            raise UsageError("--server is given without --model-name, the name of the model on the server")
        from mlcore.serving.clients.access import Access
        from mlcore.serving.predict_served import predict_served

        return predict_served(
            server=server,
            protocol=protocol,
            model_name=model_name,
            signature=signature,
            access=Access.read(host_header, token_file, ca_file),
            deadline_s=deadline_s,
            concurrency=concurrency,
            input=input,
            output_dir=output_dir,
            min_score=min_score,
            max_detections=max_detections,
            label_map=label_map,
            draw=draw,
            max_bad_fraction=max_bad_fraction,
            overwrite=overwrite,
        )
    assert model is not None
    for flag, value in (
        ("--model-name", model_name), ("--signature", signature), ("--host-header", host_header),
        ("--token-file", token_file), ("--ca-file", ca_file),
    ):  # fmt: skip
        if value is not None:
            raise UsageError(f"{flag}={value} is given without --server, which it is for")
    return _predict_exported(
        model,
        input=input,
        output_dir=output_dir,
        min_score=min_score,
        max_detections=max_detections,
        batch_size=batch_size,
        label_map=label_map,
        draw=draw,
        max_bad_fraction=max_bad_fraction,
        overwrite=overwrite,
    )


def _predict_exported(
    model: Path,
    *,
    input: tuple[str, ...],
    output_dir: Path,
    min_score: float,
    max_detections: int,
    batch_size: int,
    label_map: Path | None,
    draw: bool,
    max_bad_fraction: float,
    overwrite: bool,
) -> PredictResult:
    """Predict with a SavedModel."""
    from mlcore.detection import pictures
    from mlcore.detection.detectors import ExportedDetector
    from mlcore.detection.predictions import Run, check_again
    from mlcore.serving.version_directory import find_version, model_digest

    directory = find_version(model)
    found = pictures.find_pictures(input, output_dir=output_dir)
    classes = _read_classes(directory, label_map)
    output = OutputDirectory(
        output_dir,
        step="predict",
        parameters={"min_score": min_score, "max_detections": max_detections, "draw": draw, "classes": classes},
        inputs={"model": model_digest(directory), "pictures": pictures.pictures_digest(found)},
        reads=[directory, *(picture.path for picture in found)],
        overwrite=overwrite,
    )
    if (done := output.existing()) is not None:
        check_again(output_dir, max_bad_fraction)
        return PredictResult(**done["results"], model=directory, output_dir=output_dir)
    detector = ExportedDetector(directory)
    with output.writing() as staging:
        run = Run(detector.detect, classes, staging, min_score=min_score, max_detections=max_detections, draw=draw)
        run.over(found, batch_size)
        run.check(max_bad_fraction)
        version = int(directory.name) if directory.name.isdigit() else None
        run.write({"directory": str(directory), "version": version}, str(directory))
        output.results = dict(run.counts())
    return PredictResult(**output.results, model=directory, output_dir=output_dir)


def _read_classes(directory: Path, label_map: Path | None) -> dict[int, str]:
    """Names of the classes; empty, with a warning, where nobody knows them."""
    from mlcore.data.label_map import read_label_map
    from mlcore.serving.version_directory import LABEL_MAP

    own = directory / LABEL_MAP
    if label_map is None and not own.is_file():
        log.warning("%s has no label map: classes are shown as numbers; pass --label-map", directory)
        return {}
    return read_label_map(label_map or own)
