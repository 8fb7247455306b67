"""Outputs appear whole or not at all, and the same work is not done twice."""

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from mlcore.runtime.errors import DataError, TransientError, UsageError
from mlcore.runtime.outputs import SUCCESS, OutputDirectory, atomic_file, file_digest, read_success, refuse_foreign


def directory(path, **changes):
    arguments = {"step": "convert", "parameters": {"seed": 1}, "inputs": {"data": "abc"}} | changes
    return OutputDirectory(path, **arguments)


def fill(output, text="hello"):
    with output.writing() as staging:
        (staging / "sub").mkdir()
        (staging / "sub" / "file").write_text(text)
        output.results = {"images": 3}


def names(path):
    return sorted(entry.name for entry in path.iterdir())


def test_directory_appears_with_its_record(tmp_path):
    output = directory(tmp_path / "a" / "out")
    assert output.existing() is None
    fill(output)
    record = read_success(tmp_path / "a" / "out")
    assert record["step"] == "convert" and record["results"] == {"images": 3} and record["inputs"] == {"data": "abc"}
    assert names(tmp_path / "a") == ["out"]
    assert (tmp_path / "a" / "out" / "sub" / "file").read_text() == "hello"


def test_same_again_is_up_to_date(tmp_path):
    fill(directory(tmp_path / "out"))
    assert directory(tmp_path / "out").existing()["results"] == {"images": 3}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"parameters": {"seed": 2}}, "--seed 1, now 2"),
        ({"parameters": {"seed": 1, "shards": 4}}, "--shards null, now 4"),
        ({"inputs": {"data": "xyz"}}, "another input data"),
        ({"step": "extract"}, "the step convert, now extract"),
    ],
)
def test_another_result_under_the_same_name_is_refused(tmp_path, change, words):
    fill(directory(tmp_path / "out"))
    with pytest.raises(DataError, match=words):
        directory(tmp_path / "out", **change).existing()
    other = directory(tmp_path / "out", overwrite=True, **change)
    assert other.existing() is None
    fill(other, "new")
    assert (tmp_path / "out" / "sub" / "file").read_text() == "new"
    assert names(tmp_path) == ["out"]


def test_foreign_files_are_not_replaced(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(DataError, match=r"thesis\.txt"):
        directory(tmp_path / "out").existing()


def test_failure_leaves_nothing_and_keeps_what_was_there(tmp_path):
    fill(directory(tmp_path / "out"))
    with pytest.raises(RuntimeError), directory(tmp_path / "out", overwrite=True).writing() as staging:
        (staging / "half").write_text("x")
        raise RuntimeError
    assert names(tmp_path) == ["out"]
    assert (tmp_path / "out" / "sub" / "file").read_text() == "hello"


def test_killed_run_leaves_no_result_and_is_cleaned_by_the_next(tmp_path):
    script = textwrap.dedent("""
        import sys, time
        from pathlib import Path
        from mlcore.runtime.outputs import OutputDirectory
        output = OutputDirectory(Path(sys.argv[1]), step="convert", parameters={"seed": 1}, inputs={"data": "abc"})
        with output.writing() as staging:
            (staging / "half").write_text("x")
            print("writing", flush=True)
            time.sleep(60)
    """)
    process = subprocess.Popen([sys.executable, "-c", script, tmp_path / "out"], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "writing\n"
    # a second run at the same time must leave the first one's staging directory alone
    with directory(tmp_path / "other").writing():
        assert any(name.startswith(".out") for name in names(tmp_path))
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out").exists()
    assert len(names(tmp_path)) == 2
    fill(directory(tmp_path / "out"))
    assert names(tmp_path) == ["other", "out"]


def test_directory_in_a_folder_that_cannot_be_written_is_filled_in_place(tmp_path):
    """As under `docker run -v out:/out`: the directory is there, its parent is not ours."""
    if os.getuid() == 0:
        mount = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", tmp_path], capture_output=True)
        mounted = mount.returncode == 0
    else:
        mounted = False
    try:
        out = tmp_path if mounted else tmp_path / "out"
        if not mounted:
            out.mkdir()
            tmp_path.chmod(0o555)
        fill(directory(out))
        assert names(out) == [SUCCESS, "sub"]
        assert directory(out).existing() is not None
        other = directory(out, parameters={"seed": 5}, overwrite=True)
        assert other.existing() is None
        fill(other, "second")
        assert (out / "sub" / "file").read_text() == "second"
    finally:
        if mounted:
            subprocess.run(["umount", tmp_path], check=True)
        else:
            tmp_path.chmod(0o755)


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), id="Python's"),
        pytest.param(RuntimeError("/out/saved_model.pb.tmp1; No space left on device"), id="a library's own"),
        pytest.param(DataError("the other process: OSError: No space left on device"), id="of another process"),
    ],
)
def test_a_full_disk_is_a_transient_failure_that_leaves_nothing(tmp_path, error):
    with (
        pytest.raises(TransientError, match=r": no room on the disk .*; nothing is left behind"),
        directory(tmp_path / "out").writing() as staging,
    ):
        (staging / "half").write_text("x")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_other_errors_stay_what_they_are(tmp_path):
    with pytest.raises(PermissionError), directory(tmp_path / "out").writing():
        raise PermissionError(errno.EACCES, "not allowed")


def test_output_that_is_a_file_is_a_usage_error(tmp_path):
    (tmp_path / "out").write_text("x")
    with pytest.raises(UsageError, match="is a file"):
        directory(tmp_path / "out")


def test_atomic_file_appears_whole(tmp_path):
    with atomic_file(tmp_path / "report.html") as temporary:
        temporary.write_text("whole")
        assert not (tmp_path / "report.html").exists()
    assert (tmp_path / "report.html").read_text() == "whole"
    assert (tmp_path / "report.html").stat().st_mode & 0o777 == 0o644
    with pytest.raises(OSError), atomic_file(tmp_path / "report.html") as temporary:
        temporary.write_text("half")
        raise OSError
    assert (tmp_path / "report.html").read_text() == "whole"
    assert names(tmp_path) == ["report.html"]


def test_record_that_is_not_json_is_bad_data(tmp_path):
    (tmp_path / SUCCESS).write_text("{")
    with pytest.raises(DataError, match=SUCCESS):
        read_success(tmp_path)


def test_a_damaged_record_is_said_and_overwrite_replaces_the_result(tmp_path):
    fill(directory(tmp_path / "out"))
    (tmp_path / "out" / SUCCESS).write_text("")
    with pytest.raises(DataError, match="pass --overwrite=true"):
        directory(tmp_path / "out").existing()
    with pytest.raises(DataError, match="remove this file"):
        refuse_foreign(tmp_path / "out", "train", "--model-dir")
    fill(directory(tmp_path / "out", overwrite=True))
    assert directory(tmp_path / "out").existing() is not None


def test_digest_is_sha256(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert file_digest(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_record_has_sorted_readable_json(tmp_path):
    fill(directory(tmp_path / "out"))
    text = (tmp_path / "out" / SUCCESS).read_text()
    assert json.loads(text)["time"] <= time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 1))


@pytest.mark.parametrize("dangling", [False, True])
def test_a_link_stays_and_leads_to_the_result(tmp_path, dangling):
    real = tmp_path / "big" / "place"
    (real if not dangling else real.parent).mkdir(parents=True)
    (tmp_path / "link").symlink_to("big/place")
    for text in ("one", "two"):
        fill(directory(tmp_path / "link", inputs={"data": text}, overwrite=True), text)
        assert (tmp_path / "link").is_symlink() and (real / "sub" / "file").read_text() == text
    assert names(tmp_path) == ["big", "link"]


def test_a_version_that_lost_a_file_is_not_up_to_date(tmp_path):
    from mlcore.serving.version_directory import VersionDirectory

    def version():
        return VersionDirectory(tmp_path / "m", step="export", parameters={}, inputs={})

    with version().writing() as staging:
        (staging / "saved_model.pb").write_bytes(b"model")
        (staging / "variables").write_bytes(b"numbers")
    assert version().existing() is not None
    (tmp_path / "m" / "1" / "variables").unlink()
    assert version().existing() is None


def test_foreign_files_are_deleted_on_demand_only_and_the_message_says_so(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match=r"it holds notes\.txt\) and not .*--overwrite=true deletes all that is in it"):
        directory(tmp_path / "out").existing()
    assert names(tmp_path / "out") == ["notes.txt"]
