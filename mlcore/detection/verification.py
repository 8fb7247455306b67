"""An export is loaded in a fresh process and compared with the checkpoint's own detections before it is published.

The process imports TensorFlow alone, as a server would. It is started before the export is written, so that its
start-up takes no time of its own:

    with FreshProcess() as fresh:
        ...                                             # write the SavedModel
        answers = fresh.run(directory, pictures)        # signature or file -> detections of each picture
    agreement = compare(expected, answers["image_bytes"])
"""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from mlcore.data import example
from mlcore.detection.detectors import IMAGE_BYTES, OUTPUTS, detections_of
from mlcore.detection.metrics import Detections
from mlcore.runtime.errors import DataError

log = logging.getLogger(__name__)

SERVING_DEFAULT, TF_EXAMPLE = "serving_default", "tf_example"
FROZEN_GRAPH = "frozen_inference_graph.pb"
FROZEN_INPUT = "image_tensor"
SAME_IOU, SAME_SCORE = 0.95, 0.01  # two detections of a class are the same if they differ by no more than this
SAME_CORNER = 1e-3  # of the picture's side: so boxes are the same that are too thin for the first
LEAST_AGREEMENT = 0.98
MOST_TIES = 0.25  # of the detections; beyond it too little is left to compare


@dataclass(frozen=True)
class Selection:
    """How a model chooses its detections from what it finds; at each of these bounds a rounding error can decide.

    Attributes:
        count: Largest number of detections in a picture.
        score: Least score of a detection.
        iou: Of two boxes of a class that overlap by more than this, suppression keeps the one with the higher score.
    """

    count: int = 100
    score: float = 0.05
    iou: float = 0.5

    @classmethod
    def of(cls, task_config: Any) -> "Selection":
        """That of a model of official.vision, by its task's section of the configuration (`config.task`)."""
        options = task_config.model.detection_generator
        return cls(options.max_num_detections, options.pre_nms_score_threshold, options.nms_iou_threshold)

    def ties(self, lists: tuple[Detections, Detections], alone: tuple[Any, Any]) -> tuple[Any, Any]:
        """Which detections of one list can be missing in the other by a rounding error.

        Either their score is as good as that of the last one which the other list could keep; or the other list has a
        box of the same class and as good a score, which suppression kept in their stead; or one with a better score
        that is itself such a tie, so that suppression had another box to start from.

        Args:
            lists: Two lists of detections.
            alone: Which of them the other list lacks; a mask of each list.
        """
        one, other = lists
        near = one.classes[:, np.newaxis] == other.classes
        near &= np.array([_iou(box, other.boxes_yxyx) for box in one.boxes_yxyx]).reshape(near.shape) > self.iou
        better = one.scores[:, np.newaxis] - other.scores
        tied = (
            alone[0] & (self._cut(one, other) | np.any(near & (np.abs(better) <= SAME_SCORE), axis=1)),
            alone[1] & (self._cut(other, one) | np.any(near & (np.abs(better) <= SAME_SCORE), axis=0)),
        )
        while True:  # as long as ties bring ties about
            more = (
                tied[0] | (alone[0] & np.any(near & (better <= 0) & tied[1], axis=1)),
                tied[1] | (alone[1] & np.any(near & (better >= 0) & tied[0][:, np.newaxis], axis=0)),
            )
            if sum(map(np.count_nonzero, more)) == sum(map(np.count_nonzero, tied)):
                return tied
            tied = more

    def _cut(self, found: Detections, other: Detections) -> Any:
        cut = np.abs(found.scores - self.score) <= SAME_SCORE
        if len(other.scores) >= self.count:  # what took the last places counts in the other list, if it is no tie
            cut |= found.scores <= other.scores.min() + SAME_SCORE
        return cut


@dataclass(frozen=True)
class Agreement:
    """How far two sets of detections of the same pictures are the same.

    Attributes:
        pictures: Pictures compared.
        detections: Expected detections in them.
        share: Those that both have, of the larger of the two numbers without the near ties; 1 where neither has any.
        ties: Detections that one of the two lacks and that a rounding error can take away (see `Selection`).
        box_difference: Largest difference of a coordinate of those that both have, as a fraction of the picture's side.
        score_difference: Largest difference of a score of those.
    """

    pictures: int
    detections: int
    share: float
    ties: int
    box_difference: float
    score_difference: float


def compare(
    expected: Sequence[Detections], actual: Sequence[Detections], selection: Selection | None = None
) -> Agreement:
    """Compare detections picture by picture.

    Not number by number: a rounding error in a score can swap two neighbours, let suppression keep the other of two
    boxes that are as good as each other, or put another detection in the last place. Such near ties speak neither for
    nor against the agreement. A detection has to be the same in its class, its box and its score, whatever its place.

    Args:
        expected: Detections of each picture.
        actual: Those to compare with them.
        selection: How the model chose them.
    """
    selection = selection or Selection()
    common, comparable, larger, boxes, scores = 0, 0, 0, [0.0], [0.0]
    for one, other in zip(expected, actual, strict=True):
        pairs = _pairs(one, other)
        alone = np.ones(len(one.scores), bool), np.ones(len(other.scores), bool)
        alone[0][pairs[:, 0]] = alone[1][pairs[:, 1]] = False
        ties = selection.ties((one, other), alone)
        missing = [int(np.count_nonzero(lacking & ~tied)) for lacking, tied in zip(alone, ties, strict=True)]
        common += len(pairs)
        comparable += len(pairs) + max(missing)
        larger += max(len(one.scores), len(other.scores))
        for first, second in pairs:
            boxes.append(float(np.abs(other.boxes_yxyx[second] - one.boxes_yxyx[first]).max()))
            scores.append(float(abs(other.scores[second] - one.scores[first])))
    count = sum(len(one.scores) for one in expected)
    share = common / comparable if comparable else float(not larger)
    return Agreement(len(expected), count, share, larger - comparable, max(boxes), max(scores))


def _pairs(one: Detections, other: Detections) -> Any:
    """Indices of the detections that are the same, [pairs, 2]."""
    pairs = []
    free = np.ones(len(other.scores), bool)
    for index, (box, score, label) in enumerate(zip(one.boxes_yxyx, one.scores, one.classes, strict=True)):
        candidates = np.flatnonzero(free & (other.classes == label) & (np.abs(other.scores - score) <= SAME_SCORE))
        candidates = candidates[_iou(box, other.boxes_yxyx[candidates]) >= SAME_IOU]
        if candidates.size:
            nearest = candidates[np.argmin(np.abs(other.boxes_yxyx[candidates] - box).max(axis=1))]
            free[nearest] = False
            pairs.append((index, nearest))
    return np.array(pairs, int).reshape(-1, 2)


def _iou(box: Any, others: Any) -> Any:
    low = np.maximum(box[:2], others[:, :2])
    high = np.minimum(box[2:], others[:, 2:])
    inter = np.prod(np.maximum(high - low, 0), axis=1)
    areas = [np.prod(np.maximum(each[..., 2:] - each[..., :2], 0), axis=-1) for each in (box, others)]
    union = areas[0] + areas[1] - inter
    same = np.abs(others - box).max(axis=1, initial=0) <= SAME_CORNER
    return np.where(same, 1.0, inter / np.maximum(union, 1e-12))


def check(
    expected: Sequence[Detections],
    answers: Mapping[str, Sequence[Detections]],
    least_agreement: float = LEAST_AGREEMENT,
    selection: Selection | None = None,
) -> Agreement:
    """Compare what each signature answered with what is expected; the worst agreement.

    Raises:
        DataError: A signature finds something else, or so many detections are near ties that it cannot be told.
    """
    worst = compare(expected, expected)
    for name, actual in answers.items():
        agreement = compare(expected, actual, selection)
        if agreement.share < least_agreement:
            raise DataError(
                f"the exported {name} agrees with the checkpoint on {agreement.share:.1%} of "
                f"{agreement.detections} detections in {agreement.pictures} pictures, expected at least "
                f"{least_agreement:.0%}; nothing was published"
            )
        if agreement.ties > MOST_TIES * agreement.detections:
            raise DataError(
                f"the exported {name} cannot be compared with the checkpoint: {agreement.ties} of "
                f"{agreement.detections} detections differ and have scores that are nearly the same as others', "
                "as those of a model that has learnt next to nothing; nothing was published"
            )
        worst = replace(
            worst,
            share=min(worst.share, agreement.share),
            ties=max(worst.ties, agreement.ties),
            box_difference=max(worst.box_difference, agreement.box_difference),
            score_difference=max(worst.score_difference, agreement.score_difference),
        )
    return worst


class FreshProcess:
    """A process of its own that runs exported models."""

    def __enter__(self) -> Self:
        environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_USE_LEGACY_KERAS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__ if __name__ != "__main__" else __spec__.name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()

    def run(self, directory: Path, pictures: Sequence[bytes], scratch: Path) -> dict[str, list[Detections]]:
        """Name of each signature, and of a frozen graph where there is one -> its detections of each picture.

        Args:
            directory: Directory with `saved_model.pb`.
            pictures: Encoded pictures.
            scratch: An empty directory for what the two processes hand to each other.

        Raises:
            DataError: The export cannot be loaded or run; the message has the other process's last line.
        """
        scratch.mkdir(parents=True, exist_ok=True)
        for index, picture in enumerate(pictures):
            (scratch / f"{index:04d}.picture").write_bytes(picture)
        order = json.dumps({"directory": str(directory), "scratch": str(scratch), "pictures": len(pictures)})
        _, complaint = self._process.communicate(order.encode())
        if self._process.returncode != 0:
            lines = complaint.decode(errors="replace").strip().splitlines() or ["no message"]
            log.debug("%s", "\n".join(lines))
            raise DataError(f"the export cannot be used in a fresh process: {lines[-1]}")
        answers: dict[str, list[Detections]] = {}
        for file in sorted(scratch.glob("*.npz")):
            with np.load(file) as arrays:
                rows = range(len(arrays["num_detections"]))
                outputs = dict(arrays)
                answers[file.stem] = [detections_of(outputs, row) for row in rows]
        return answers


def main() -> None:
    """The other process: read the order from stdin, run every signature, write the answers."""
    import tensorflow as tf

    text = sys.stdin.buffer.read()
    if not text:
        return  # the exporting process is gone
    before = set(sys.modules)  # TensorFlow brings a Keras of its own accord
    order = json.loads(text)
    directory, scratch = Path(order["directory"]), Path(order["scratch"])
    pictures = [(scratch / f"{index:04d}.picture").read_bytes() for index in range(order["pictures"])]
    model = tf.saved_model.load(str(directory))
    wanted = {*OUTPUTS, *model.signatures[SERVING_DEFAULT].structured_outputs}
    pixels = [tf.io.decode_image(picture, channels=3, expand_animations=False) for picture in pictures]
    records = [
        example.encode(bytes_lists={"image/encoded": [picture]}, float_lists={}, int64_lists={}) for picture in pictures
    ]
    ways: dict[str, Any] = {
        SERVING_DEFAULT: lambda call: _stack([call(inputs=image[tf.newaxis]) for image in pixels]),
        IMAGE_BYTES: lambda call: call(inputs=tf.constant(pictures)),
        TF_EXAMPLE: lambda call: call(inputs=tf.constant(records)),
    }
    with ThreadPoolExecutor() as pool:  # the first call of each has TensorFlow optimise its graph, on one core
        answers = {name: pool.submit(way, model.signatures[name]) for name, way in ways.items()}
        for name, answer in answers.items():
            _save(scratch / f"{name}.npz", answer.result(), wanted)
    frozen = directory / "assets.extra" / FROZEN_GRAPH
    if frozen.is_file():
        graph = load_frozen_graph(frozen, sorted(wanted))
        _save(scratch / f"{FROZEN_GRAPH}.npz", _stack([graph(image[tf.newaxis]) for image in pixels]), wanted)
    others = {name.partition(".")[0] for name in set(sys.modules) - before} & {"official", "tf_keras", "keras"}
    if others:
        raise ImportError(f"loading the export imported {', '.join(sorted(others))}; expected TensorFlow alone")


def _stack(each: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {name: np.concatenate([np.asarray(outputs[name]) for outputs in each]) for name in each[0]}


def _save(path: Path, outputs: Mapping[str, Any], wanted: set[str]) -> None:
    arrays = {name: np.asarray(value) for name, value in outputs.items()}
    if set(arrays) != wanted or any(array.dtype != np.float32 for array in arrays.values()):
        found = ", ".join(f"{name} {array.dtype}" for name, array in sorted(arrays.items()))
        raise TypeError(f"{path.stem} has the outputs {found}; expected {', '.join(sorted(wanted))} of float32")
    np.savez(path, **arrays)  # type: ignore[arg-type]


def load_frozen_graph(path: Path, outputs: Sequence[str]) -> Any:
    """A frozen graph as a function of uint8 pictures of one size, by the names of its nodes."""
    import tensorflow as tf

    graph = tf.compat.v1.GraphDef()
    graph.ParseFromString(path.read_bytes())
    imported = tf.compat.v1.wrap_function(lambda: tf.compat.v1.import_graph_def(graph, name=""), [])
    nodes = {name: imported.graph.get_tensor_by_name(f"{name}:0") for name in outputs}
    return imported.prune(imported.graph.get_tensor_by_name(f"{FROZEN_INPUT}:0"), nodes)


if __name__ == "__main__":
    main()
