"""`convert` when it is stopped, or one of its processes is killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from voc_sets import annotation, box, jpeg, names_in

from mlcore.data.convert import convert
from mlcore.runtime.errors import TransientError


def start(voc, tmp_path, *flags):
    """A conversion that takes a while: every image is decoded."""
    command = [sys.executable, "-m", "mlcore", "convert", f"--data-dir={voc.root}", f"--output-dir={tmp_path / 'out'}",
               "--verify-images=true", "--workers=2", *flags]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 30
    while not any(path.stat().st_size for path in tmp_path.glob(".out.partial-*/*.tfrecord-*")):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process


@pytest.fixture
def long_set(voc):
    picture = jpeg((1600, 1200), quality=95)
    xml = annotation(box(), size=(1600, 1200))
    for number in range(400):
        name = f"large_{number:03}"
        if number:
            (voc.root / "JPEGImages" / f"{name}.jpg").hardlink_to(voc.root / "JPEGImages" / "large_000.jpg")
            (voc.root / "Annotations" / f"{name}.xml").write_text(xml)
        else:
            voc.add(name, xml, picture)
    return voc


def children_of(process):
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")  # as is_running: small systems have no `ps`
    return [int(pid) for pid in children.read_text().split()]


def is_running(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["sigterm", "ctrl-c"])
def test_a_stopped_conversion_leaves_nothing_behind(long_set, tmp_path, number):
    process = start(long_set, tmp_path)
    workers = children_of(process)
    assert len(workers) == 2
    stopped = time.monotonic()
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert time.monotonic() - stopped < 10
    assert process.returncode == 128 + number
    assert "Traceback" not in errors
    assert names_in(tmp_path) == ["raw"]
    assert not any(map(is_running, workers))


def test_a_killed_worker_is_a_transient_failure_that_leaves_nothing_behind(long_set, tmp_path):
    process = start(long_set, tmp_path)
    os.kill(children_of(process)[0], signal.SIGKILL)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == TransientError.exit_code
    assert "was killed by SIGKILL" in errors
    assert "Traceback" not in errors
    assert names_in(tmp_path) == ["raw"]


def test_workers_of_a_killed_conversion_end_and_the_next_run_cleans_up(long_set, tmp_path):
    process = start(long_set, tmp_path)
    workers = children_of(process)
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 5
    while any(map(is_running, workers)):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert not (tmp_path / "out").exists()
    convert(data_dir=long_set.root, output_dir=tmp_path / "out")
    assert names_in(tmp_path) == ["out", "raw"]
