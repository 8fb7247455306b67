"""Golden cases: pictures and what a model answered once, to be answered so again.

    {"task": "classification", "cases": [{"name": "0", "pixels": {"shape": [28, 28], "b64": "..."},
                                          "expected": {"class_id": 7, "probabilities": [...]}}]}
    {"task": "detection",      "cases": [{"name": "0", "picture": {"b64": "..."},
                                          "expected": {"boxes_yxyx": [...], "scores": [...], "classes": [...]}}]}

A file that was recorded by one protocol can be checked by another.
"""

import base64
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlcore.detection.metrics import Detections
from mlcore.detection.verification import compare
from mlcore.runtime.errors import DataError, UsageError
from mlcore.runtime.outputs import atomic_file
from mlcore.serving.clients.client import RequestRefusedError, ServerFailedError
from mlcore.serving.served import CLASS_IDS, PROBABILITIES, ServedClassifier, ServedDetector, Task

LEAST_AGREEMENT = 0.98  # share of the boxes that both have


@dataclass(frozen=True)
class Case:
    """One picture and what is expected of it.

    Attributes:
        name: For messages.
        picture: An encoded picture, or uint8 pixels (rows, columns).
        expected: What was answered once.
    """

    name: str
    picture: Any
    expected: dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """How one check ended.

    Attributes:
        name: What was checked.
        problem: What was wrong; empty where all is well.
        answer: What came back, in words.
    """

    name: str
    problem: str = ""
    answer: str = ""


def read_golden(path: Path, task: Task) -> list[Case]:
    """The cases of a file.

    Raises:
        UsageError: There is no such file, or it is for another task.
        DataError: It holds something else.
    """
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise UsageError(f"--golden={path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error})") from error
    if not isinstance(content, dict) or not isinstance(content.get("cases"), list) or not content["cases"]:
        raise DataError(f"{path}: expected an object with cases, as mlcore verify --write-golden makes it")
    if content.get("task") != task:
        raise UsageError(f"--golden={path}: cases of {content.get('task')}; the served model does {task}")
    cases = []
    for index, entry in enumerate(content["cases"]):
        try:
            if task == "detection":
                picture: Any = base64.b64decode(entry["picture"]["b64"], validate=True)
            else:
                held = base64.b64decode(entry["pixels"]["b64"], validate=True)
                picture = np.frombuffer(held, np.uint8).reshape(entry["pixels"]["shape"])
            expected = dict(entry["expected"])
            _ = expected["class_id"] if task == "classification" else expected["boxes_yxyx"]
            cases.append(Case(str(entry.get("name", index)), picture, expected))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path}: case {index} is not one of {task} ({error!r})") from error
    return cases


def write_golden(path: Path, model: ServedDetector | ServedClassifier, pictures: Sequence[Any]) -> int:
    """Ask a model about pictures and store what it answers; the number of cases."""
    cases: list[dict[str, Any]] = []
    for index, picture in enumerate(pictures):
        case: dict[str, Any] = {"name": str(index)}
        if isinstance(model, ServedDetector):
            case["picture"] = {"b64": base64.b64encode(picture).decode()}
        else:
            held = base64.b64encode(np.ascontiguousarray(picture).tobytes()).decode()
            case["pixels"] = {"shape": list(picture.shape), "b64": held}
        case["expected"] = _answer(model, picture)
        cases.append(case)
    target = model.target
    about = {"model": model.client.model_name, "version": target.version, "protocol": model.client.protocol}
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps({"task": target.task, "recorded": about, "cases": cases}, indent=1) + "\n")
    return len(cases)


def check_golden(cases: Sequence[Case], model: ServedDetector | ServedClassifier, tolerance: float) -> list[Outcome]:
    """Whether the model answers each case as it once did."""
    differs: Callable[[dict[str, Any], dict[str, Any]], str]
    differs = _detection_differs if isinstance(model, ServedDetector) else (
        lambda expected, answer: _class_differs(expected, answer, tolerance)
    )  # fmt: skip
    outcomes = []
    for case in cases:
        try:
            problem = differs(case.expected, _answer(model, case.picture))
        except (RequestRefusedError, ServerFailedError) as error:
            problem = str(error)
        outcomes.append(Outcome(f"golden {case.name}", problem))
    return outcomes


def _answer(model: ServedDetector | ServedClassifier, picture: Any) -> dict[str, Any]:
    """What a model says of one picture, as JSON holds it."""
    if isinstance(model, ServedDetector):
        found = model.detect_one(picture)
        return {
            "boxes_yxyx": np.round(found.boxes_yxyx, 6).tolist(),
            "scores": np.round(found.scores, 6).tolist(),
            "classes": found.classes.tolist(),
        }
    answer = model.classify(picture[np.newaxis])
    probabilities = answer[PROBABILITIES][0] if PROBABILITIES in answer else ()
    return {
        "class_id": int(answer[CLASS_IDS][0]),
        "probabilities": [round(float(value), 6) for value in probabilities],
    }


def _class_differs(expected: dict[str, Any], answer: dict[str, Any], tolerance: float) -> str:
    if answer["class_id"] != expected["class_id"]:
        return f"class {answer['class_id']}, expected {expected['class_id']}"
    before, now = expected.get("probabilities") or [], answer["probabilities"]
    if before and now:
        if len(before) != len(now):
            return f"{len(now)} probabilities, expected {len(before)}"
        most = float(np.abs(np.subtract(before, now)).max())
        if not most <= tolerance:
            return f"a probability differs by {most:.4g}, at most {tolerance:g} is allowed"
    return ""


def _detection_differs(expected: dict[str, Any], answer: dict[str, Any]) -> str:
    one, other = _detections(expected), _detections(answer)
    agreement = compare([one], [other])
    if agreement.share >= LEAST_AGREEMENT:
        return ""
    return (
        f"{len(other.scores)} boxes, expected {len(one.scores)}; they agree on {agreement.share:.1%}, expected at "
        f"least {LEAST_AGREEMENT:.0%}"
    )


def _detections(entry: dict[str, Any]) -> Detections:
    return Detections(
        boxes_yxyx=np.asarray(entry["boxes_yxyx"], np.float32).reshape(-1, 4),
        scores=np.asarray(entry["scores"], np.float32),
        classes=np.asarray(entry["classes"], np.int64),
    )
