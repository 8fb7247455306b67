"""A step as a task of Kubeflow Pipelines, by the "executor input" that Pipelines passes (the placeholder `{{$}}`).

    {"inputs": {"parameterValues": {"steps": 500}},
     "outputs": {"outputFile": "/tmp/kfp_outputs/output_metadata.json",
                 "artifacts": {"report": {"artifacts": [{"name": …, "uri": "s3://…/report"}]}}}}

It has the inputs that were given, which is the only way to pass an optional one: Pipelines knows no empty number, and
its backend resolves neither IfPresent nor Concat (pipelines#9486, #8710). And it names the artifacts that are expected,
and the file to tell about them: the numbers of a step become a Metrics artifact, its report.html an HTML artifact.
"""

import json
import logging
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlcore.runtime.errors import UsageError
from mlcore.runtime.outputs import atomic_file

log = logging.getLogger(__name__)

METRICS, REPORT = "metrics", "report"
REPORT_FILE = "report.html"
# Where the launcher has the files of a store, which it carries there afterwards.
_MOUNTS = {"gs://": "/gcs/", "minio://": "/minio/", "s3://": "/s3/", "oci://": "/oci/"}


class ExecutorInput:
    """The executor input of a task.

    Args:
        text: The JSON that Pipelines passes.

    Attributes:
        values: The inputs that have a value.

    Raises:
        UsageError: It is something else.
    """

    def __init__(self, text: str) -> None:
        try:
            content = json.loads(text)
            given = content.get("inputs", {}).get("parameterValues", {})
            self.values = {name: value for name, value in given.items() if value is not None}
            outputs = content["outputs"]
            self._file = Path(outputs["outputFile"])
            self._artifacts = {
                name: dict(entry["artifacts"][0]) for name, entry in outputs.get("artifacts", {}).items()
            }
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise UsageError("--executor-input: expected the JSON of the placeholder {{$}} of Pipelines") from error

    def write(self, results: Mapping[str, Any], folders: Sequence[Path]) -> None:
        """Write the artifacts, and what Pipelines wants to know of them.

        Args:
            results: The named results of the step.
            folders: Where its report.html may be; the first that has one.
        """
        for name, artifact in self._artifacts.items():
            if name == METRICS:
                artifact["metadata"] = {**artifact.get("metadata", {}), **_numbers(results)}
            elif name == REPORT:
                _copy_report(folders, local_path(artifact["uri"]))
        artifacts = {name: {"artifacts": [artifact]} for name, artifact in self._artifacts.items()}
        with atomic_file(self._file) as temporary:
            temporary.write_text(json.dumps({"artifacts": artifacts}))


def local_path(uri: str) -> Path:
    """Where the files of an artifact are inside a task."""
    for scheme, mount in _MOUNTS.items():
        if uri.startswith(scheme):
            return Path(mount + uri.removeprefix(scheme))
    return Path(uri)


def _numbers(results: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers among results, and those in mappings of them."""
    found: dict[str, float] = {}
    for name, value in results.items():
        if isinstance(value, Mapping):
            found |= _numbers(value)
        elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            found[name] = value
    return found


def _copy_report(folders: Sequence[Path], target: Path) -> None:
    found = next((folder / REPORT_FILE for folder in folders if (folder / REPORT_FILE).is_file()), None)
    if found is None:
        log.warning("no %s was written, so that there is none to show", REPORT_FILE)
        return
    with atomic_file(target) as temporary:
        shutil.copyfile(found, temporary)
