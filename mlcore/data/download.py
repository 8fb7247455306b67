"""The step `download`: files from http, https or file addresses, or a known data set by its name."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from mlcore.data.datasets import DATASETS, DatasetName
from mlcore.data.remote import Digest, RemoteFile, name_from_url
from mlcore.runtime.errors import DataError, UsageError
from mlcore.runtime.outputs import SUCCESS, OutputDirectory, atomic_file, read_success
from mlcore.runtime.parameters import Range, step

STEP = "download"


@dataclass(frozen=True)
class DownloadResult:
    """What `download` did.

    Attributes:
        output_dir: Directory with the files and `_SUCCESS.json`.
        files: Files that were asked for; all are there.
        downloaded: How many of them were transferred now; the rest were up to date.
        bytes: Size of all of them together.
    """

    output_dir: Path
    files: int
    downloaded: int
    bytes: int


@step
def download(
    *,
    output_dir: Path,
    url: tuple[str, ...] = (),
    sha256: tuple[str, ...] = (),
    dataset: DatasetName | None = None,
    mirror: tuple[str, ...] = (),
    parallel: Annotated[int, Range(min=1, max=64)] = 4,
    retries: Annotated[int, Range(min=0)] = 5,
    connect_timeout_s: Annotated[float, Range(min=0.1)] = 20,
    stall_timeout_s: Annotated[float, Range(min=0.1)] = 60,
    backoff_s: Annotated[float, Range(min=0)] = 1,
    overwrite: bool = False,
) -> DownloadResult:
    """Download files or a known data set; checked, resumed after a cut, skipped when they are there.

    The directory gathers files: what is there stays, and `_SUCCESS.json` lists every file that was downloaded into it.
    A file that is there with the right digest is not asked for again; without a digest the server is asked whether it
    has changed. What came of a transfer that was cut is kept in `.<name>.part`, and the next run goes on from there.
    Proxies are taken from the environment (https_proxy, http_proxy, no_proxy).

    Args:
        output_dir: Directory for the files; it may hold others.
        url: http, https or file address; the last part of its path is the file's name.
        sha256: Digest of the address at the same place in the list of --url: 64 hexadecimal digits, md5:<32 digits>, or
            - where none is known.
        dataset: Known data set; its addresses, mirrors, sizes and digests are built in.
        mirror: Base address that has files of the same names (a name is appended); tried before the files' own
            addresses.
        parallel: Transfers at once.
        retries: Failures in a row, without a byte gained, after which an address is given up and the next mirror's turn
            comes.
        connect_timeout_s: Longest wait for a connection, in seconds.
        stall_timeout_s: Longest time without a byte before the connection counts as broken, in seconds.
        backoff_s: First wait after a failure, in seconds; it doubles with each, up to a minute, less a random part.
        overwrite: Replace a file that is there and differs.

    Returns:
        Where the files are, and how many were transferred.

    Raises:
        UsageError: Nothing to download, a wrong address or digest, two files with one name, or no such file there.
        DataError: Wrong digest or size, or a different file is there already.
        TransientError: No answer after the last retry, or the disk is full.
    """
    from mlcore.data.fetch import Ledger, fetch_all, with_mirrors

    files = with_mirrors(_files(url, sha256, dataset), mirror)
    if output_dir.exists() and not output_dir.is_dir():
        raise UsageError(f"--output-dir={output_dir}: is a file, expected a directory")
    record = read_success(output_dir)
    if record is not None and record.get("step") != STEP:
        raise DataError(f"{output_dir}: was made by the step {record.get('step')}; name another --output-dir")
    fetched = fetch_all(
        files,
        output_dir,
        parallel=parallel,
        retries=retries,
        connect_timeout_s=connect_timeout_s,
        stall_timeout_s=stall_timeout_s,
        backoff_s=backoff_s,
        overwrite=overwrite,
        # The record must never tell of a file that is being replaced.
        before_replacing=lambda: (output_dir / SUCCESS).unlink(missing_ok=True),
    )
    _write_record(output_dir, Ledger(output_dir).files)
    return DownloadResult(
        output_dir=output_dir,
        files=len(fetched),
        downloaded=sum(not file.up_to_date for file in fetched),
        bytes=sum(file.size for file in fetched),
    )


def _files(urls: tuple[str, ...], digests: tuple[str, ...], dataset: DatasetName | None) -> list[RemoteFile]:
    """What is asked for, as files with addresses and digests."""
    if not urls and dataset is None:
        raise UsageError(f"--url or --dataset must be given; known data sets: {', '.join(DATASETS)}")
    if digests and len(digests) != len(urls):
        raise UsageError(
            f"--sha256 is given {len(digests)} times for {len(urls)} --url; expected one for each, in the same order, "
            "or - where none is known"
        )
    known = [None if text.strip() == "-" else Digest.parse(text) for text in digests] or [None] * len(urls)
    files = [RemoteFile(name_from_url(url), (url,), digest=digest) for url, digest in zip(urls, known, strict=True)]
    return [*files, *(DATASETS[dataset] if dataset else ())]


def _write_record(directory: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    """`_SUCCESS.json` with every file that was downloaded into the directory, by this run and by earlier ones."""
    there = {name: entry for name, entry in sorted(files.items()) if (directory / name).is_file()}
    inputs = {name: f"sha256:{entry['sha256']}" for name, entry in there.items()}
    before = read_success(directory)
    if before is not None and before.get("inputs") == inputs:
        return  # nothing changed: what later steps compare, such as its time, stays
    output = OutputDirectory(directory, step=STEP, parameters={}, inputs=inputs)
    output.results = {
        "files": len(there),
        "bytes": sum(entry["size"] for entry in there.values()),
        "sources": {name: entry["url"] for name, entry in there.items()},
    }
    with atomic_file(directory / SUCCESS) as temporary:
        temporary.write_text(json.dumps(output.success_record(), indent=1, sort_keys=True) + "\n")
