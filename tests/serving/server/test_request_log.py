import base64
import errno
import hashlib
import json
import logging
import os
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from mlcore.serving.server import request_log
from mlcore.serving.server.request_log import MOST_VALUES, RequestLog


def entry(number=0, **arrays):
    inputs = arrays or {"x": np.arange(6, dtype=np.float32).reshape(1, 2, 3)}
    outputs = {"y": np.array([[0.5, np.nan]], np.float32), "name": np.array([b"cat"], object)}
    return {"id": f"r{number}", "time": 1_700_000_000.1234, "model": "m", "version": 3, "protocol": "v1",
            "latency_ms": 1.5, "signature": "serving_default", "inputs": inputs, "outputs": outputs}  # fmt: skip


def make(folder, counts=None, **options):
    defaults = {"max_file_bytes": 10**6, "max_files": 3, "payload": False}
    count = (lambda outcome: counts.update([outcome])) if counts is not None else (lambda outcome: None)
    return RequestLog(folder, **defaults | options, count=count)


def lines(folder):
    return [json.loads(line) for path in sorted(folder.glob("*.jsonl")) for line in path.read_text().splitlines()]


def test_entry_has_the_id_the_digest_and_the_answer(tmp_path):
    log = make(tmp_path / "log")
    log.write(entry())
    log.close()
    (line,) = lines(tmp_path / "log")
    raw = np.arange(6, dtype="<f4").tobytes()
    assert line == {
        "id": "r0", "time": "2023-11-14T22:13:20.123Z", "model": "m", "version": 3, "protocol": "v1",
        "latency_ms": 1.5, "signature": "serving_default",
        "inputs": {"x": {"dtype": "float32", "shape": [1, 2, 3], "sha256": hashlib.sha256(raw).hexdigest()}},
        "outputs": {"y": [[0.5, None]], "name": ["cat"]},
    }  # fmt: skip


def test_payload_gives_the_inputs_back(tmp_path):
    log = make(tmp_path, payload=True)
    pictures = np.empty(2, object)
    pictures[:] = [b"\xff\xd8one", b"two"]
    log.write(entry(x=np.arange(4, dtype=np.int16), pictures=pictures))
    log.close()
    (line,) = lines(tmp_path)
    data = base64.b64decode(line["inputs"]["x"]["data"])
    assert np.frombuffer(data, "<i2").tolist() == [0, 1, 2, 3]
    assert [base64.b64decode(text) for text in line["inputs"]["pictures"]["data"]] == [b"\xff\xd8one", b"two"]
    assert line["inputs"]["pictures"]["dtype"] == "string"


def test_a_large_output_is_a_digest(tmp_path):
    log = make(tmp_path)
    log.write({**entry(), "outputs": {"masks": np.zeros(MOST_VALUES + 1, np.float32)}})
    log.close()
    (line,) = lines(tmp_path)
    assert line["outputs"]["masks"].keys() == {"dtype", "shape", "sha256"}


def test_files_are_bounded_in_size_and_number_and_the_newest_stay(tmp_path):
    log = make(tmp_path, max_file_bytes=2000, max_files=3)
    for number in range(100):
        log.write(entry(number))
    log.close()
    files = sorted(tmp_path.glob("*.jsonl"))
    assert len(files) == 3
    assert all(file.stat().st_size <= 2000 for file in files)
    numbers = [int(line["id"][1:]) for line in lines(tmp_path)]
    assert numbers == list(range(numbers[0], 100))


def test_a_second_run_goes_on_with_new_files(tmp_path):
    for number in range(2):
        log = make(tmp_path)
        log.write(entry(number))
        log.close()
    assert [line["id"] for line in lines(tmp_path)] == ["r0", "r1"]
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("what", ["removed", "replaced by a file"])
def test_a_folder_that_vanishes_costs_entries_and_nothing_else(tmp_path, what, caplog):
    folder, counts = tmp_path / "log", Counter()
    log = make(folder, counts, max_file_bytes=100)
    log.write(entry(0))
    while not counts:
        time.sleep(0.01)
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    if what == "replaced by a file":
        folder.write_text("")
    for number in range(1, 4):
        log.write(entry(number))
    log.close()
    if what == "removed":  # it is made again
        assert [line["id"] for line in lines(folder)] == ["r1", "r2", "r3"]
    else:
        assert counts == {"written": 1, "failed": 3}
        assert sum("cannot be written" in record.message for record in caplog.records) == 1


def test_a_full_disk_is_counted_and_logged_once_and_costs_no_old_file(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(request_log, "_QUIET_S", 0)
    counts = Counter()
    log = make(tmp_path, counts, max_files=2)
    log._file = Path("/dev/full").open("wb", buffering=0)  # noqa: SIM115 the log closes it
    caplog.set_level(logging.INFO)
    for number in range(20):
        log.write(entry(number))
    while counts["failed"] < 20:
        time.sleep(0.01)
    assert list(tmp_path.iterdir()) == []
    with (tmp_path / "requests-000001.jsonl").open("wb") as room:
        os.dup2(room.fileno(), log._file.fileno())
    log.write(entry(1))
    log.close()
    assert counts == {"failed": 20, "written": 1}
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert os.strerror(errno.ENOSPC) in caplog.records[0].message
    assert [line["id"] for line in lines(tmp_path)] == ["r1"]


def test_a_writer_that_cannot_keep_up_drops_entries_and_never_waits(tmp_path, caplog):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    counts = Counter()
    log = make(tmp_path / "log", counts, payload=True)
    log._file = pipe.open("wb", buffering=0)  # full after 64 KB: the writer hangs
    large = np.zeros(2**20, np.float32)
    started = time.monotonic()
    for number in range(50):
        log.write(entry(number, x=large))
    assert time.monotonic() - started < 2
    assert counts["dropped"] >= 50 - 17
    assert sum("cannot keep up" in record.message for record in caplog.records) == 1
    os.close(reader)
    log.close()
