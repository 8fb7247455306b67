"""A served model as a detector or classifier, whatever protocol its server speaks.

target = find_target(client, signature)
if target.task == "detection":
    detections = ServedDetector(client, target, concurrency=4).detect_each(pictures)
else:
    answers = ServedClassifier(client, target).classify(imgs)
"""

import io
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import numpy as np

from mlcore.detection.detectors import IMAGE_BYTES, MASKS, detections_of
from mlcore.detection.metrics import Detections
from mlcore.runtime.errors import DataError, UsageError
from mlcore.serving.clients.client import (
    SERVING_DEFAULT,
    Array,
    Metadata,
    ModelClient,
    RequestRefusedError,
    ServerFailedError,
    TensorSpec,
    bytes_array,
)
from mlcore.serving.latency import Latencies
from mlcore.serving.request_pool import RequestPool

Task = Literal["detection", "classification"]
T = TypeVar("T")
R = TypeVar("R")

BOXES, SCORES, CLASSES, COUNT = "detection_boxes", "detection_scores", "detection_classes", "num_detections"
_MOST_NORMALISED = 2.0  # a little above 1 happens; boxes in pixels are far above
PROBABILITIES, CLASS_IDS, NAMES = "probabilities", "class_ids", "classes"


@dataclass(frozen=True)
class Target:
    """How a served model is called.

    Attributes:
        task: What it does.
        signature: Name to send; None: none, so that the server takes its default.
        input: Its input.
        outputs: Its outputs, as far as the server tells.
        version: The version that the server said it is.
    """

    task: Task
    signature: str | None
    input: TensorSpec
    outputs: Mapping[str, TensorSpec]
    version: int | None


def find_target(client: ModelClient, signature: str | None = None) -> Target:
    """What a served model is and takes, by its metadata.

    Args:
        client: Client of the model.
        signature: Signature to call; None: image_bytes where the model has it, else serving_default, else the only one.

    Raises:
        UsageError: The server has no such model or signature.
        DataError: The model is neither a detector nor a classifier with one input, or the server does not tell.
        TransientError: The server does not answer.
    """
    metadata = client.metadata()
    known = metadata.signatures
    if signature is None:
        name = next((each for each in (IMAGE_BYTES, SERVING_DEFAULT) if each in known), None)
        name = name or (next(iter(known)) if len(known) == 1 else None)
        if name is None:
            raise UsageError(f"{client} has the signatures {', '.join(known) or 'none'}; name one by --signature")
    elif signature in known:
        name = signature
    elif metadata.has_signatures:
        raise UsageError(f"--signature={signature}: {client} has {', '.join(known) or 'none'}")
    else:
        return _unlisted(client, signature, metadata)
    chosen = known[name]
    if not chosen.inputs:
        raise DataError(f"{client}: the server does not tell the model's inputs; try another --protocol")
    if len(chosen.inputs) > 1:
        raise DataError(f"{client}: {name} has the inputs {_listed(chosen.inputs)}; expected one, of pictures")
    (spec,) = chosen.inputs.values()
    task = _task(spec, chosen.outputs)
    if task is None:
        raise DataError(
            f"{client}: {name} has {spec} and the outputs {', '.join(chosen.outputs) or 'unknown'}; expected a "
            f"detector ({BOXES}, ...) or a classifier ({PROBABILITIES} or {CLASS_IDS})"
        )
    if task == "detection" and not spec.is_bytes and spec.dtype != np.uint8:
        raise DataError(f"{client}: {name} takes {spec}; expected encoded pictures or uint8 pixels")
    if task == "classification":
        _grey_shape(spec, str(client))
    default = signature is None and name == SERVING_DEFAULT
    sent = name if metadata.has_signatures and not default else None
    return Target(task, sent, spec, chosen.outputs, metadata.version)


def _unlisted(client: ModelClient, signature: str, metadata: Metadata) -> Target:
    """A signature of which the protocol tells nothing: as the default one, but image_bytes takes encoded pictures.

    The Open Inference Protocol has no signatures; mlcore serve takes the request's parameter signature_name.
    """
    default = find_target(client)
    spec = default.input
    if signature == IMAGE_BYTES:
        spec = TensorSpec(spec.name, np.dtype(object), (-1,))
    return Target(default.task, signature, spec, default.outputs, metadata.version)


def _task(spec: TensorSpec, outputs: Mapping[str, TensorSpec]) -> Task | None:
    if BOXES in outputs:
        return "detection"
    if PROBABILITIES in outputs or CLASS_IDS in outputs or (not outputs and spec.name == "imgs"):
        return "classification"
    return None if outputs or not (spec.is_bytes or spec.dtype == np.uint8) else "detection"


def _listed(specs: Mapping[str, TensorSpec]) -> str:
    return ", ".join(map(str, specs.values()))


class _Calls:
    """Calls of a model by a bounded number of threads, each timed."""

    def __init__(self, client: ModelClient, target: Target, concurrency: int = 4) -> None:
        self.client = client
        self.target = target
        self.latencies = Latencies()
        self._pool = RequestPool(concurrency)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.close(wait=kind is None or issubclass(kind, Exception))  # else the step was asked to stop

    def call(self, array: Array) -> dict[str, Array]:
        """One request, timed."""
        started = time.monotonic()
        outputs = self.client.predict({self.target.input.name: array}, signature=self.target.signature)
        self.latencies.add(time.monotonic() - started)
        return outputs

    def each(self, function: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """The function over all items, in their order, several at a time; the first error ends it."""
        return self._pool.each(function, items)


class ServedDetector(_Calls):
    """A served detector with the Object Detection API's outputs; one picture a request."""

    @property
    def has_masks(self) -> bool:
        """Whether detections have masks."""
        return MASKS in self.target.outputs

    def detect(self, images: Sequence[bytes]) -> list[Detections]:
        """The detections of each picture, in order."""
        return self.each(self.detect_one, images)

    def detect_each(self, images: Sequence[bytes]) -> list[Detections | DataError]:
        """The detections of each picture, or why the server refused it."""

        def one(image: bytes) -> Detections | DataError:
            try:
                return self.detect_one(image)
            except RequestRefusedError as error:
                return error

        return self.each(one, images)

    def detect_one(self, image: bytes) -> Detections:
        """The detections of one encoded picture."""
        outputs = self.call(self.request([image]))
        if np.size(outputs.get(BOXES, ())) and float(np.max(outputs[BOXES])) > _MOST_NORMALISED:
            outputs[BOXES] = _normalised(outputs[BOXES], image)
        return detections_in(outputs, 0, str(self.client))

    def request(self, images: Sequence[bytes]) -> Array:
        """Encoded pictures as the model's input; of pixels, pictures of one size."""
        if self.target.input.is_bytes:
            return bytes_array(images)
        return np.stack([decode(image) for image in images])


class ServedClassifier(_Calls):
    """A served classifier of grey pictures."""

    @property
    def image_shape(self) -> tuple[int, int]:
        """Rows and columns of its pictures."""
        return _grey_shape(self.target.input, str(self.client))

    def request(self, imgs: Array) -> Array:
        """Pictures, uint8 of shape (n, rows, columns), as the model's input."""
        spec = self.target.input
        shape = [len(imgs), *(spec.shape or (-1, *imgs.shape[1:], 1))[1:]]
        if len(shape) == 4:
            shape[1:3] = imgs.shape[1:]
        values = imgs if spec.dtype == np.uint8 else (imgs.astype(np.float32) / 255.0).astype(spec.dtype)
        return np.ascontiguousarray(values).reshape(shape)

    def classify(self, imgs: Array) -> dict[str, Array]:
        """`probabilities` (n, classes) where the model gives them, `class_ids` (n,) and perhaps `classes` (names).

        Args:
            imgs: uint8 of shape (n, rows, columns), 0 black to 255 white.
        """
        return classes_in(self.call(self.request(imgs)), len(imgs), str(self.client))


def _normalised(boxes: Array, image: bytes) -> Array:
    """Boxes in pixels of the picture, as exports of official.vision give them by default, in 0..1 of it."""
    from PIL import Image

    with Image.open(io.BytesIO(image)) as opened:
        width, height = opened.size
    return np.asarray(boxes, np.float64) / [height, width, height, width]


def decode(image: bytes) -> Array:
    """The pixels of an encoded picture, (height, width, 3)."""
    from PIL import Image

    with Image.open(io.BytesIO(image)) as opened:
        return np.asarray(opened.convert("RGB"))


def detections_in(outputs: Mapping[str, Array], row: int, who: str) -> Detections:
    """The detections of one picture among the answers of a server.

    Raises:
        ServerFailedError: An output is missing, or they do not fit each other.
    """
    missing = [name for name in (BOXES, SCORES, CLASSES) if name not in outputs]
    if missing:
        raise ServerFailedError(f"{who}: the answer has no {missing[0]}, only {', '.join(outputs) or 'nothing'}")
    found = dict(outputs)
    if COUNT not in found:
        found[COUNT] = np.full(len(found[SCORES]), found[SCORES].shape[-1])
    found[COUNT] = np.atleast_1d(found[COUNT])
    try:
        return detections_of(found, row)
    except (IndexError, ValueError, TypeError) as error:
        shapes = ", ".join(f"{name} {list(np.shape(value))}" for name, value in found.items())
        raise ServerFailedError(f"{who}: the answer has {shapes}, which do not fit each other") from error


def classes_in(outputs: Mapping[str, Array], count: int, who: str) -> dict[str, Array]:
    """The class of each picture among the answers of a server; errors as in `detections_in`."""
    found: dict[str, Array] = {}
    if PROBABILITIES in outputs:
        values = np.asarray(outputs[PROBABILITIES], np.float64)
        if values.shape[:1] == (count,) and values.ndim == 2:
            found[PROBABILITIES] = values
    if CLASS_IDS in outputs:
        found[CLASS_IDS] = np.asarray(outputs[CLASS_IDS], np.int64).reshape(-1)
    elif PROBABILITIES in found and found[PROBABILITIES].shape[1]:
        found[CLASS_IDS] = found[PROBABILITIES].argmax(axis=1)
    if len(found.get(CLASS_IDS, ())) != count:
        given = ", ".join(f"{name} {list(np.shape(value))}" for name, value in outputs.items())
        raise ServerFailedError(f"{who}: {count} pictures were sent, the answer has {given or 'nothing'}")
    if NAMES in outputs and len(outputs[NAMES]) == count:
        found[NAMES] = outputs[NAMES]
    return found


def _grey_shape(spec: TensorSpec, who: str) -> tuple[int, int]:
    """Rows and columns of what an input takes: [n, rows, columns, 1], [n, rows, columns] or [n, pixels]."""
    lengths: tuple[Any, ...] = spec.shape or (-1, 28, 28, 1)
    inner = lengths[1:]
    if len(inner) == 3 and inner[2] in (1, -1):
        inner = inner[:2]
    if len(inner) == 1 and inner[0] > 0 and int(inner[0] ** 0.5) ** 2 == inner[0]:
        inner = (int(inner[0] ** 0.5),) * 2
    if len(inner) != 2 or min(inner) < 1 or spec.dtype.kind not in "fu":
        raise DataError(
            f"{who}: takes {spec}; expected numbers of grey pictures, such as imgs: float32 [-1, 28, 28, 1]"
        )
    return int(inner[0]), int(inner[1])
