"""Edge cases: what a server must answer well, and what it must refuse without harm."""

import io
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from mlcore.detection.metrics import Detections
from mlcore.detection.verification import compare
from mlcore.serving.clients.client import (
    Array,
    NotServedError,
    RequestRefusedError,
    ServerFailedError,
    UnavailableError,
    bytes_array,
)
from mlcore.serving.served import (
    CLASS_IDS,
    PROBABILITIES,
    ServedClassifier,
    ServedDetector,
    classes_in,
    detections_in,
)
from mlcore.serving.verification.golden import LEAST_AGREEMENT, Outcome

log = logging.getLogger(__name__)

MANY = 32
_SIDE = 64  # pixels of the pictures that are drawn here
_ABSENT = "mlcore-verify-no-such-model"


@dataclass(frozen=True)
class _Edge:
    """One case.

    Attributes:
        name: For messages.
        ask: Makes the request; what is wrong with the answer, or nothing.
        refusal: Whether the server `must`, `may` or must `never` refuse it.
    """

    name: str
    ask: Callable[[], str]
    refusal: str = "never"


def check_edges(model: ServedDetector | ServedClassifier) -> list[Outcome]:
    """Ask everything of `_classifier_edges` or `_detector_edges`, and at last the first of them again.

    Raises:
        UnavailableError: The server does not answer any more; the message names the case.
    """
    edges = list(_detector_edges(model) if isinstance(model, ServedDetector) else _classifier_edges(model))
    edges += list(_wrong_requests(model))
    edges.append(_Edge("still answers after all that", edges[0].ask))
    return [_outcome(edge) for edge in edges]


def _outcome(edge: _Edge) -> Outcome:
    try:
        problem = edge.ask()
    except (RequestRefusedError, NotServedError) as error:
        problem = str(error) if edge.refusal == "never" else ""
        return Outcome(edge.name, problem, f"refused: {error.status}")
    except ServerFailedError as error:
        return Outcome(edge.name, str(error), f"failed: {error.status}")
    except UnavailableError as error:
        raise UnavailableError(f"the server does not answer any more at the edge case {edge.name}: {error}") from error
    if edge.refusal == "must" and not problem:
        problem = "was accepted; expected an error of the 4xx or INVALID_ARGUMENT kind"
    return Outcome(edge.name, problem, "answered")


def _classifier_edges(model: ServedClassifier) -> Iterator[_Edge]:
    rows, columns = model.image_shape
    noise = np.random.default_rng(0).integers(0, 256, (MANY, rows, columns)).astype(np.uint8)

    def answered(imgs: Array) -> Callable[[], str]:
        return lambda: _class_problem(model.classify(imgs), len(imgs))

    def many() -> str:
        together = model.classify(noise)
        problem = _class_problem(together, MANY)
        for index in (0, MANY // 2, MANY - 1):
            alone = model.classify(noise[index : index + 1])
            if PROBABILITIES in alone and PROBABILITIES in together:
                difference = float(np.abs(alone[PROBABILITIES][0] - together[PROBABILITIES][index]).max())
                if not difference <= 1e-3:
                    problem = problem or f"probability of picture {index} differs by {difference:.3g} from asking alone"
            elif alone[CLASS_IDS][0] != together[CLASS_IDS][index]:
                problem = problem or f"picture {index} has another class than when asked alone"
        return problem

    yield _Edge("all black", answered(np.zeros((1, rows, columns), np.uint8)))
    yield _Edge("all white", answered(np.full((1, rows, columns), 255, np.uint8)))
    yield _Edge("a batch of one", answered(noise[:1]))
    yield _Edge("a batch of many", many)
    yield _Edge("a batch of none", _none(model, model.request(noise)[:0], _no_classes), "may")
    good = model.request(noise[:1])
    wrong = np.zeros((1, good.shape[1] + 1, *good.shape[2:]), good.dtype)
    yield _Edge("wrong shape", _sent(model, wrong), "must")
    yield _Edge("one dimension", _sent(model, good.ravel()[:3]), "must")
    texts = bytes_array([b"not a number"] * good.size).reshape(good.shape)
    yield _Edge("wrong dtype", _sent(model, texts), "must")


def _detector_edges(model: ServedDetector) -> Iterator[_Edge]:
    black, white = (_encoded(np.full((_SIDE, _SIDE, 3), value, np.uint8)) for value in (0, 255))
    noise = [
        _encoded(np.random.default_rng(seed).integers(0, 256, (_SIDE, _SIDE, 3)).astype(np.uint8))
        for seed in range(MANY // 4)
    ]

    def answered(image: bytes) -> Callable[[], str]:
        return lambda: _detection_problem(model.detect_one(image))

    def many() -> str:
        outputs = model.call(model.request(noise))
        together = [detections_in(outputs, row, str(model.client)) for row in range(len(noise))]
        problem = next(filter(None, map(_detection_problem, together)), "")
        agreement = compare([model.detect_one(image) for image in noise], together)
        if agreement.share < LEAST_AGREEMENT:
            problem = problem or f"agrees with asking one by one on {agreement.share:.1%} of the boxes"
        return problem

    fixed = not model.target.input.is_bytes and (model.target.input.shape or (-1,))[0] == 1
    yield _Edge("all black", answered(black))
    yield _Edge("all white", answered(white))
    yield _Edge("a batch of one", answered(noise[0]))
    if not fixed:
        yield _Edge("a batch of many", many)
    yield _Edge("a batch of none", _none(model, model.request(noise[:1])[:0], _no_boxes), "may")
    if model.target.input.is_bytes:
        yield _Edge("no picture", _sent(model, bytes_array([b"not a picture"])), "must")
        yield _Edge("an empty picture", _sent(model, bytes_array([b""])), "must")
        yield _Edge("a picture cut off", _sent(model, bytes_array([noise[0][:100]])), "must")
        yield _Edge("wrong shape", _sent(model, bytes_array([black]).reshape(1, 1)), "must")
        yield _Edge("wrong dtype", _sent(model, np.zeros((1, 8), np.float32)), "must")
    else:
        yield _Edge("wrong shape", _sent(model, np.zeros((1, _SIDE, _SIDE), np.uint8)), "must")
        yield _Edge("wrong number of channels", _sent(model, np.zeros((1, _SIDE, _SIDE, 2), np.uint8)), "must")
        texts = bytes_array([b"not a number"] * 12).reshape(1, 2, 2, 3)
        yield _Edge("wrong dtype", _sent(model, texts), "must")


def _wrong_requests(model: ServedDetector | ServedClassifier) -> Iterator[_Edge]:
    client = model.client
    good = model.request([_encoded(np.zeros((8, 8, 3), np.uint8))]) if isinstance(model, ServedDetector) else (
        model.request(np.zeros((1, *model.image_shape), np.uint8))
    )  # fmt: skip

    def misnamed() -> str:
        client.predict({"no_such_input": good}, signature=model.target.signature)
        return ""

    def unknown_signature() -> str:
        client.predict({model.target.input.name: good}, signature="no_such_signature")
        return ""

    def unknown_model() -> str:
        with type(client)(client.server, _ABSENT, client.deadline_s) as other:
            other.predict({model.target.input.name: good})
        return ""

    if client.protocol != "v1" or model.target.input.is_bytes:  # rows of numbers of one input go without its name
        yield _Edge("wrong name of the input", misnamed, "must")
    if client.protocol in ("tfs-grpc", "v1"):
        yield _Edge("unknown signature", unknown_signature, "must")
    yield _Edge("unknown model", unknown_model, "must")


def _sent(model: ServedDetector | ServedClassifier, array: Array) -> Callable[[], str]:
    def send() -> str:
        model.call(array)
        return ""

    return send


def _none(
    model: ServedDetector | ServedClassifier, array: Array, check: Callable[[dict[str, Array]], str]
) -> Callable[[], str]:
    return lambda: check(model.call(array))


def _no_classes(outputs: dict[str, Array]) -> str:
    classes_in(outputs, 0, "the server")
    return ""


def _no_boxes(outputs: dict[str, Array]) -> str:
    given = {name: len(array) for name, array in outputs.items() if np.ndim(array)}
    return "" if not any(given.values()) else f"no picture was sent, the answer has {given}"


def _class_problem(answer: dict[str, Array], count: int) -> str:
    """What is wrong with the classes of `count` pictures."""
    if PROBABILITIES in answer:
        values = answer[PROBABILITIES]
        if not np.isfinite(values).all():
            return "a probability is not a finite number"
        if (values < -1e-6).any() or not np.allclose(values.sum(axis=1), 1.0, atol=1e-3):
            return f"the probabilities of a picture add up to {values.sum(axis=1)[0]:.4g}, expected 1"
        if (values.argmax(axis=1) != answer[CLASS_IDS]).any():
            same = values[np.arange(count), answer[CLASS_IDS].clip(0, values.shape[1] - 1)]
            if (same < values.max(axis=1)).any():
                return "class_ids is not the class with the highest probability"
    if (answer[CLASS_IDS] < 0).any():
        return f"class {int(answer[CLASS_IDS].min())}; expected 0 or more"
    return ""


def _detection_problem(found: Detections) -> str:
    """What is wrong with the detections of a picture."""
    if not (np.isfinite(found.boxes_yxyx).all() and np.isfinite(found.scores).all()):
        return "a box or score is not a finite number"
    if ((found.scores < 0) | (found.scores > 1.0001)).any():
        return f"a score is {float(found.scores.max()):.4g}; expected 0 to 1"
    if (found.classes < 0).any():
        return f"class {int(found.classes.min())}; expected 0 or more"
    return ""


def _encoded(pixels: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
