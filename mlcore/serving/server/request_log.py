"""The request log: what was asked and answered, one JSON object a line, for monitoring and training later.

    {"id": ..., "time": "2026-01-31T12:00:00.123Z", "model": ..., "version": 3, "protocol": "tfs-grpc",
     "signature": "serving_default", "latency_ms": 1.9,
     "inputs": {"imgs": {"dtype": "float32", "shape": [1, 28, 28, 1], "sha256": ..., "data": <base64>}},
     "outputs": {"class_ids": [7], ...}}

`data` is there if payloads are kept: the bytes of the array, little-endian, in C order; of strings a list, each in
base64. `sha256` is over these bytes (of strings over each one's length as 8 bytes and itself). An output with more
than `MOST_VALUES` numbers is written as an input is. A thread writes; when it cannot keep up or the disk is full,
entries are counted and dropped: a log never slows or breaks the server.
"""

import base64
import contextlib
import datetime
import errno
import hashlib
import json
import logging
import math
import os
import queue
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mlcore.runtime.outputs import is_disk_full
from mlcore.serving.server.signature import Array

log = logging.getLogger(__name__)

MOST_VALUES = 4096
_PREFIX, _SUFFIX = "requests-", ".jsonl"
_WAITING = 1000  # entries
_QUIET_S = 2.0  # a disk that is nearly full takes one entry and refuses the next
_WAITING_BYTES = 64 * 2**20


class RequestLog:
    """A folder of JSON lines, rotated by size and bounded in number of files.

    Args:
        folder: Where the files go; made if it is not there.
        max_file_bytes: A file is closed when it has so many.
        max_files: How many stay; the oldest are removed.
        payload: Whether inputs are kept whole, not only their digests.
        count: Told what became of entries: written, dropped (too many at once) or failed (disk).
    """

    def __init__(
        self, folder: Path, *, max_file_bytes: int, max_files: int, payload: bool, count: Any = lambda outcome: None
    ) -> None:
        self.folder = folder
        self.max_file_bytes = max_file_bytes
        self.max_files = max_files
        self.payload = payload
        self._count = count
        self._queue: queue.Queue[dict[str, Any] | None] = queue.Queue(_WAITING)
        self._bytes = 0
        self._lock = threading.Lock()
        self._file: BinaryIO | None = None
        self._size = 0
        self._broken = False
        self._failed_at = 0.0
        self._overrun = False
        folder.mkdir(parents=True, exist_ok=True)
        self._number = max((number for number, _ in self._files()), default=0)
        self._thread = threading.Thread(target=self._write_all, name="request-log", daemon=True)
        self._thread.start()

    def write(self, entry: dict[str, Any]) -> None:
        """Hand an entry to the writer; never waits."""
        size = _size_of(entry["inputs"]) + _size_of(entry["outputs"])
        with self._lock:
            fits = self._bytes + size <= _WAITING_BYTES or not self._bytes
            if fits:
                self._bytes += size
        if fits:
            entry["bytes"] = size
            try:
                self._queue.put_nowait(entry)
                return
            except queue.Full:
                with self._lock:
                    self._bytes -= size
        self._count("dropped")
        if not self._overrun:
            self._overrun = True
            log.warning("%s: the request log cannot keep up; entries are dropped and counted", self.folder)

    def close(self, timeout_s: float = 2.0) -> None:
        """Write what waits, for `timeout_s` seconds at most."""
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=timeout_s)
        self._thread.join(timeout_s)

    def _files(self) -> Iterator[tuple[int, Path]]:
        """Number and path of each file of the log, the oldest first."""
        found = []
        for path in self.folder.glob(f"{_PREFIX}*{_SUFFIX}"):
            number = path.name.removeprefix(_PREFIX).removesuffix(_SUFFIX)
            if number.isdecimal():
                found.append((int(number), path))
        return iter(sorted(found))

    def _write_all(self) -> None:
        while (entry := self._queue.get()) is not None:
            with self._lock:
                self._bytes -= entry.pop("bytes")
            try:
                self._write(_line(entry, self.payload))
            except Exception as error:  # disk full, folder gone, a value that JSON cannot hold
                self._count("failed")
                if not self._broken:
                    self._broken = True
                    log.warning("%s: the request log cannot be written (%s); entries are counted", self.folder, error)
                self._failed_at = time.monotonic()
                # On a full disk it stays: each new file would cost an old one, until nothing of the log is left.
                if not is_disk_full(error):
                    self._drop_file()
            else:
                self._count("written")
                if self._broken and time.monotonic() > self._failed_at + _QUIET_S:
                    self._broken = False
                    log.info("%s: the request log can be written again", self.folder)
        self._drop_file()

    def _write(self, line: bytes) -> None:
        if self._file is None or self._size + len(line) > self.max_file_bytes:
            self._rotate()
        assert self._file is not None
        written = self._file.write(line)
        if written != len(line):  # half a line: the next entry must not be glued to it
            os.ftruncate(self._file.fileno(), self._size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._size += written

    def _rotate(self) -> None:
        self._drop_file()
        self.folder.mkdir(parents=True, exist_ok=True)
        number = self._number + 1
        self._file = (self.folder / f"{_PREFIX}{number:06}{_SUFFIX}").open("xb", buffering=0)
        self._number = number
        self._size = 0
        files = list(self._files())
        for _, path in files[: max(len(files) - self.max_files, 0)]:
            path.unlink(missing_ok=True)

    def _drop_file(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None


def _size_of(values: Mapping[str, Array]) -> int:
    return sum(sum(map(len, value.flat)) if value.dtype == object else value.nbytes for value in values.values())


def _line(entry: dict[str, Any], payload: bool) -> bytes:
    moment = datetime.datetime.fromtimestamp(entry["time"], datetime.UTC)
    fields = {
        **entry,
        "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "inputs": {name: _summary(value, payload) for name, value in entry["inputs"].items()},
        "outputs": {
            name: _summary(value, payload) if value.size > MOST_VALUES else _values(value)
            for name, value in entry["outputs"].items()
        },
    }
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def _summary(value: Array, payload: bool) -> dict[str, Any]:
    """An array by its type, shape and digest, and itself if wanted."""
    digest = hashlib.sha256()
    data: Any
    if value.dtype == object:
        for text in value.flat:
            digest.update(len(text).to_bytes(8, "little") + text)
        data = [base64.b64encode(text).decode() for text in value.flat] if payload else None
        kind = "string"
    else:
        raw = np.ascontiguousarray(value, value.dtype.newbyteorder("<")).tobytes()
        digest.update(raw)
        data = base64.b64encode(raw).decode() if payload else None
        kind = str(value.dtype)
    summary = {"dtype": kind, "shape": list(value.shape), "sha256": digest.hexdigest()}
    return {**summary, "data": data} if payload else summary


def _values(value: Array) -> Any:
    """An array as lists; bytes as text, and a number that JSON does not have as null."""
    return _plain(value.tolist())


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(part) for part in value]
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
