"""One conversion by several pods: each makes its own shards, the last one to end puts them together.

Each part appears whole in a hidden folder beside the output, named after what the conversion is made from, so parts of
different data or parameters never meet. Two pods that end at the same moment take turns by a lock; where locks do not
work (some network file systems) both put the same bytes together, and one of them wins the rename.
"""

import fcntl
import logging
import os
import shutil
from dataclasses import asdict
from hashlib import sha256
from json import dumps
from pathlib import Path
from typing import Any

from mlcore.data.conversion import Conversion
from mlcore.data.plan import Decisions, ShardResult
from mlcore.runtime.errors import DataError
from mlcore.runtime.outputs import OutputDirectory, read_success

log = logging.getLogger(__name__)


def convert_part(conversion: Conversion, output: OutputDirectory, index: int, count: int) -> dict[str, Any] | None:
    """Make part `index` of `count`, and the whole if all the other parts are there.

    Returns:
        The results of the whole, or None while parts are missing.
    """
    folder = _parts_folder(output)
    part = OutputDirectory(
        folder / _part_name(index, count),
        step="convert-part",
        parameters={**output.parameters, "shard_index": index, "shard_count": count},
        inputs=output.inputs,
    )
    if part.existing() is None:
        with part.writing() as directory:
            mine = [shard for number, shard in enumerate(conversion.job.shards) if number % count == index]
            results, decisions = conversion.run(directory, mine)
            part.results = {"shards": [result.as_json() for result in results], "decisions": asdict(decisions)}
    missing = [number for number in range(count) if read_success(folder / _part_name(number, count)) is None]
    if missing:
        log.info("part %d of %d is done; %d not yet (such as %d)", index, count, len(missing), missing[0])
        return None
    return _put_together(conversion, output, folder, count)


def _part_name(index: int, count: int) -> str:
    return f"part-{index:05d}-of-{count:05d}"


def _parts_folder(output: OutputDirectory) -> Path:
    made_from = dumps([output.parameters, output.inputs], sort_keys=True)
    path = output.path
    name = f".{path.name}.parts-{sha256(made_from.encode()).hexdigest()[:16]}"
    inside = path.is_dir() and (path.is_mount() or not os.access(path.parent, os.W_OK))
    return (path if inside else path.parent) / name


def _put_together(conversion: Conversion, output: OutputDirectory, folder: Path, count: int) -> dict[str, Any] | None:
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:
            log.warning("%s cannot be locked (%s); going on without", folder, error.strerror)
        try:
            if (done := output.existing()) is None:
                done = {"results": _write_whole(conversion, output, folder, count)}
        except DataError:
            shutil.rmtree(folder, ignore_errors=True)  # the same parts will never make a whole
            raise
        except OSError:
            # Another pod was faster and removed the parts under our hands; then the whole is there.
            if (done := output.existing()) is None:
                raise
    shutil.rmtree(folder, ignore_errors=True)
    results: dict[str, Any] = done["results"]
    return results


def _write_whole(conversion: Conversion, output: OutputDirectory, folder: Path, count: int) -> dict[str, Any]:
    with output.writing(durable=False) as directory:
        results: dict[tuple[str, int], ShardResult] = {}
        decisions: Decisions | None = None
        for number in range(count):
            part = folder / _part_name(number, count)
            record = read_success(part)
            if record is None:
                raise FileNotFoundError(part)
            decisions = Decisions(**record["results"]["decisions"])
            for values in record["results"]["shards"]:
                result = ShardResult.from_json(values)
                results[result.split, result.index] = result
                _link(part / result.file, directory / result.file)
        assert decisions is not None
        ordered = [results[shard] for shard in conversion.job.shards]
        output.results = conversion.finish(directory, ordered, decisions)
    return output.results


def _link(source: Path, target: Path) -> None:
    """A second name for a file, or a copy where the file system has none; the part stays whole for a second try."""
    try:
        target.hardlink_to(source)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(source, target)
