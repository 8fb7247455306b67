"""Numbered versions of a model on disk, as TensorFlow Serving and KServe read them.

    <base>/<version>/saved_model.pb, variables/, assets/
    <base>/<version>/assets.extra/model.json        what the model is: signatures, classes, metrics, data, versions
    <base>/<version>/assets.extra/label_map.pbtxt   of a detector
    <base>/<version>/_SUCCESS.json                  what it was made from

    <base>/.retired/<version>/                      a version that is set aside; its number stays taken

A version is a positive integer. A server polls the base and loads the highest number that it sees, so a version appears
by one rename, whole. While it is written it has a name with a dot in front, which servers pass over.
Nothing here imports TensorFlow.
"""

import errno
import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlcore.runtime.errors import DataError, UsageError
from mlcore.runtime.outputs import OutputDirectory, file_digest, fsync_directory, read_success

log = logging.getLogger(__name__)

SAVED_MODEL = "saved_model.pb"
EXTRA = "assets.extra"
MODEL_CARD = f"{EXTRA}/model.json"
RETIRED = ".retired"
MAX_VERSION = 2**63 - 1  # TensorFlow Serving's, an int64
_MAX_DIGITS = 100
LABEL_MAP = f"{EXTRA}/label_map.pbtxt"
_TAKEN = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR, errno.EISDIR)


def version_number(name: str) -> int | None:
    """The version that a directory's name means, or None."""
    number = int(name[:_MAX_DIGITS]) if name.isascii() and name.isdecimal() else 0
    return number if 0 < number <= MAX_VERSION and len(name) < _MAX_DIGITS else None


def list_versions(base: Path) -> dict[int, Path]:
    """Version -> directory of every SavedModel in a base directory, the lowest first."""
    if not base.is_dir():
        return {}
    found = {
        number: entry
        # Of 1 and 01, which servers may read either way, always the shorter name.
        for entry in sorted(base.iterdir(), key=lambda entry: (-len(entry.name), entry.name))
        if (number := version_number(entry.name)) is not None and (entry / SAVED_MODEL).is_file()
    }
    return dict(sorted(found.items()))


def retired_versions(base: Path) -> dict[int, Path]:
    """Version -> directory of those that are set aside, the lowest first."""
    return list_versions(base / RETIRED)


def find_version(model: Path, flag: str = "--model") -> Path:
    """The directory of a SavedModel: the given one, or in a base directory its highest version.

    Raises:
        UsageError: There is none.
    """
    if not model.is_dir():
        raise UsageError(f"{flag}={model}: no such directory; expected the output directory of mlcore export")
    if (model / SAVED_MODEL).is_file():
        return model
    versions = list_versions(model)
    if not versions:
        raise UsageError(
            f"{flag}={model}: holds no SavedModel; expected {SAVED_MODEL}, or version directories such as {model}/1"
        )
    return versions[max(versions)]


def model_digest(directory: Path) -> str:
    """SHA-256 over the graph and the variables of a SavedModel."""
    files = [directory / SAVED_MODEL, *sorted((directory / "variables").glob("*"))]
    return hashlib.sha256("".join(file_digest(file) for file in files if file.is_file()).encode()).hexdigest()


def read_card(directory: Path) -> dict[str, Any]:
    """What `assets.extra/model.json` of a version says; empty where there is none.

    Raises:
        DataError: It is not a JSON object.
    """
    path = directory / MODEL_CARD
    try:
        card = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(card, dict):
        raise DataError(f"{path}: expected a JSON object")
    return card


def write_card(directory: Path, card: Mapping[str, Any]) -> None:
    """Write `assets.extra/model.json` into a version that is not published yet."""
    path = directory / MODEL_CARD
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(card, indent=1) + "\n")


class VersionDirectory(OutputDirectory):
    """A version to be published: an `OutputDirectory` whose name is a number.

        output = VersionDirectory(base, step="export", parameters=..., inputs=...)
        if (done := output.existing()) is not None: ...      # output.version has the same content
        with output.writing() as directory: ...              # SavedModel and its extras
        output.version, output.path

    Args:
        base: Directory of the versions.
        step: Name of the step that makes it.
        parameters: Parameters that change the model.
        inputs: Name of each input -> its digest.
        version: Its number; default: one more than the highest there is.
        flag: The flag that names `base`.

    Raises:
        UsageError: `base` is a file.
    """

    def __init__(
        self,
        base: Path,
        *,
        step: str,
        parameters: Mapping[str, Any],
        inputs: Mapping[str, Any],
        version: int | None = None,
        flag: str = "--output-dir",
    ) -> None:
        super().__init__(base, step=step, parameters=parameters, inputs=inputs, flag=flag)
        self.base = self.path
        self.wanted = version
        self.path = self.base / "version"  # until it has a number; staging directories are named after it

    @property
    def version(self) -> int | None:
        """The number, once it was found by `existing` or published."""
        return version_number(self.path.name)

    def existing(self) -> dict[str, Any] | None:
        """The record of a version with the same parameters and inputs, the wanted one or the highest such.

        Raises:
            DataError: The wanted version is there and has another content.
        """
        aside = retired_versions(self.base)
        for number, directory in [*reversed(list_versions(self.base).items()), *reversed(aside.items())]:
            if self.wanted is not None and number != self.wanted:
                continue
            record = read_success(directory)
            if record is not None and self._difference(record) is None:
                if (lost := self._lost(directory, record)) is not None:
                    log.warning("%s: %s; it is not taken for up to date", directory, lost)
                    continue
                self.path = directory
                log.info("%s is up to date", directory)
                if number in aside:
                    log.warning("it is set aside: mlcore versions %s promote --version=%d", self.base, number)
                return record
        if self.wanted is not None and (self.wanted in aside or (self.base / str(self.wanted)).exists()):
            raise self._is_taken(self.wanted)
        return None

    def _is_taken(self, number: int) -> DataError:
        return DataError(
            f"--version={number}: {self.base / str(number)} is there with another content; give another number, or "
            "none for the next free one"
        )

    def _must_fill_in_place(self) -> bool:
        return False

    def _rename(self, staging: Path) -> None:
        """One rename to the wanted number, or to the next that nobody took meanwhile."""
        number = self.wanted or next_version(self.base)
        while True:
            target = self.base / str(number)
            try:
                # Rename would replace an empty directory; a version that is set aside keeps its number.
                if target.exists() or (self.base / RETIRED / str(number)).exists():
                    raise FileExistsError(errno.EEXIST, "exists", str(target))
                staging.rename(target)
                break
            except OSError as error:
                if error.errno not in _TAKEN:
                    raise
                if self.wanted is not None:
                    raise self._is_taken(number) from error
                number += 1
        self.path = target
        fsync_directory(self.base)


def next_version(base: Path) -> int:
    """One more than the highest number that any entry of a base directory has or had, a SavedModel or not.

    Those that are set aside count, as do those that were removed: a number means one model for ever.
    """
    taken = [version_number(entry.name) or 0 for entry in base.iterdir()] if base.is_dir() else []
    aside = base / RETIRED
    if aside.is_dir():  # `.highest-7` in it keeps the highest number that there was when a version was removed
        taken += [version_number(entry.name.rpartition("-")[2]) or 0 for entry in aside.iterdir()]
    return max(taken, default=0) + 1
