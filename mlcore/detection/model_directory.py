"""The directory that `train` fills: what it holds, what it was trained with, whether it is finished."""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mlcore.data.label_map import write_label_map
from mlcore.data.records import LABEL_MAP
from mlcore.detection.checkpoints import BEST, PREFIX, list_checkpoints
from mlcore.detection.experiment import EXPERIMENT_FILE, describe_experiment, write_experiment
from mlcore.detection.settings import difference
from mlcore.detection.summaries import TRAIN, VALIDATION
from mlcore.runtime.errors import DataError, UsageError
from mlcore.runtime.outputs import SUCCESS, OutputDirectory, atomic_file, read_success, refuse_foreign

log = logging.getLogger(__name__)

_MADE_BY_TRAIN = (
    f"{PREFIX}-*",
    f"damaged-{PREFIX}-*",
    "checkpoint",
    BEST,
    TRAIN,
    VALIDATION,
    EXPERIMENT_FILE,
    LABEL_MAP,
    "evaluation",  # by the step evaluate, of the checkpoints that go
)


class ModelDirectory:
    """A model directory, which is filled in place and gone on with after a stop.

    `_SUCCESS.json` is there while, and only while, training to the steps that it names is done; members of a cluster
    take it for the sign to end.

    Args:
        path: The directory.
        parameters: Flags that change the model.
        inputs: Name of each input -> its digest.
        overwrite: Remove a run of other settings instead of refusing.

    Raises:
        UsageError: `path` is a file, or holds the result of another step.
    """

    def __init__(
        self, path: Path, *, parameters: Mapping[str, Any], inputs: Mapping[str, Any], overwrite: bool = False
    ) -> None:
        if path.exists() and not path.is_dir():
            raise UsageError(f"--model-dir={path}: is a file, expected a directory")
        refuse_foreign(path, "train", "--model-dir")
        self.path = path
        self._overwrite = overwrite
        self._record = OutputDirectory(path, step="train", parameters=parameters, inputs=inputs)

    def checkpoint(self, step: int) -> Path:
        """Prefix of the checkpoint of a step."""
        return self.path / f"{PREFIX}-{step}"

    def finished(self) -> dict[str, Any] | None:
        """The results of a finished run with the very same flags and data. Does not load TensorFlow."""
        record = read_success(self.path)
        if record is None:
            return None
        if (record.get("parameters"), record.get("inputs")) != (self._record.parameters, self._record.inputs):
            return None
        results = _read_results(record)
        if results["steps"] not in list_checkpoints(self.path):
            return None
        if record.get("checkpoint", {}) != self._sizes(results["steps"], record.get("checkpoint", {})):
            log.warning("%s: files of its last checkpoint are not as they were written", self.path)
            return None
        log.info("%s is up to date: trained to step %d", self.path, results["steps"])
        return results

    def _sizes(self, step: int, names: Iterable[str] | None = None) -> dict[str, int]:
        """Bytes of the files of a checkpoint, of all or of those with these names."""
        files = self.path.glob(f"{PREFIX}-{step}.*") if names is None else map(self.path.joinpath, names)
        return {path.name: path.stat().st_size for path in files if path.is_file()}

    def results(self) -> dict[str, Any] | None:
        """The results of a finished run, with whatever flags."""
        record = read_success(self.path)
        return _read_results(record) if record else None

    def open(self, description: Mapping[str, Any], classes: Mapping[int, str]) -> None:
        """Make the directory, or check that what is in it can be gone on with.

        Args:
            description: What `experiment.yaml` is to say.
            classes: Id -> name, for the label map.

        Raises:
            DataError: It holds a run of other settings or data, and `overwrite` is off.
            UsageError: It cannot be written.
        """
        different = self._difference(description)
        if different is not None and not self._is_begun():
            log.info("%s: nothing was trained there yet; beginning anew", self.path)
            self._clear()
        elif different is not None:
            if not self._overwrite:
                raise DataError(f"{self.path}: {different}; name another --model-dir or pass --overwrite=true")
            log.warning("%s: %s; removing it (--overwrite)", self.path, different)
            self._clear()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_experiment(self.path, description)
            write_label_map(self.path / LABEL_MAP, classes)
        except OSError as error:
            raise UsageError(f"--model-dir={self.path}: cannot be written ({error.strerror})") from error

    def begin(self) -> None:
        """Say that training is under way."""
        (self.path / SUCCESS).unlink(missing_ok=True)

    def finish(self, results: Mapping[str, Any]) -> None:
        """Say that training is done."""
        # JSON has no NaN, which is what a metric that was not measured is.
        self._record.results = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in results.items()
        }
        record = self._record.success_record() | {"checkpoint": self._sizes(results["steps"])}
        with atomic_file(self.path / SUCCESS) as temporary:
            temporary.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")

    def _is_begun(self) -> bool:
        """Whether there is a checkpoint, also a damaged one; a start that failed leaves only what it was to be."""
        return any(any(folder.glob("*.index")) for folder in (self.path, self.path / BEST))

    def _difference(self, description: Mapping[str, Any]) -> str | None:
        if not (self.path / EXPERIMENT_FILE).exists():
            if any(self.path.glob("*.index")):
                return f"holds checkpoints and no {EXPERIMENT_FILE}, so it was not made by mlcore train"
            return None
        try:
            before = describe_experiment(self.path)
        except DataError:
            if self._overwrite:
                return f"{EXPERIMENT_FILE} is damaged"
            raise
        different = difference(before, description)
        return f"was trained with {different}" if different else None

    def _clear(self) -> None:
        (self.path / SUCCESS).unlink(missing_ok=True)  # first: what is left after a kill is no finished run
        for pattern in _MADE_BY_TRAIN:
            for entry in self.path.glob(pattern):
                if entry.is_dir():
                    shutil.rmtree(entry)
                else:
                    entry.unlink(missing_ok=True)


def _read_results(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: math.nan if value is None else value for name, value in record["results"].items()}
