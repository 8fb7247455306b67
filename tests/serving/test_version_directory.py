import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mlcore.runtime.errors import DataError, UsageError
from mlcore.serving.version_directory import (
    VersionDirectory,
    find_version,
    list_versions,
    model_digest,
    next_version,
    read_card,
    write_card,
)


def publish(base: Path, content: str = "a", version: int | None = None) -> VersionDirectory:
    output = VersionDirectory(base, step="export", parameters={}, inputs={"content": content}, version=version)
    if output.existing() is None:
        with output.writing(durable=False) as directory:
            (directory / "saved_model.pb").write_text(content)
            output.results = {"content": content}
    return output


def test_versions_count_up_from_one(tmp_path: Path) -> None:
    base = tmp_path / "models" / "pets"
    assert [publish(base, content).version for content in "abc"] == [1, 2, 3]
    assert list(list_versions(base)) == [1, 2, 3]
    assert json.loads((base / "3" / "_SUCCESS.json").read_text())["results"] == {"content": "c"}


def test_the_next_version_is_above_every_number_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()  # not a SavedModel: never listed, never written over
    (tmp_path / "12").write_text("a file")
    (tmp_path / "notes").mkdir()
    assert next_version(tmp_path) == 13
    assert publish(tmp_path).version == 13
    assert list(list_versions(tmp_path)) == [13]


def test_versions_are_numbers_not_texts(tmp_path: Path) -> None:
    for name in ("9", "10", "0", "-1", "x", ".11"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "saved_model.pb").touch()
    assert list(list_versions(tmp_path)) == [9, 10]
    assert find_version(tmp_path) == tmp_path / "10"
    assert find_version(tmp_path / "9") == tmp_path / "9"


def test_a_version_that_is_asked_for_is_made(tmp_path: Path) -> None:
    assert publish(tmp_path, "a", version=20).path == tmp_path / "20"
    assert publish(tmp_path, "b").version == 21


def test_a_version_that_is_taken_is_an_error_and_stays_as_it_was(tmp_path: Path) -> None:
    publish(tmp_path, "a", version=3)
    with pytest.raises(DataError, match=r"--version=3: .* is there with another content"):
        publish(tmp_path, "b", version=3)
    assert (tmp_path / "3" / "saved_model.pb").read_text() == "a"
    (tmp_path / "4").mkdir()
    with pytest.raises(DataError, match="--version=4"):
        publish(tmp_path, "b", version=4)
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".")] == []


def test_the_same_content_again_is_the_same_version(tmp_path: Path) -> None:
    publish(tmp_path, "a")
    publish(tmp_path, "b")
    assert publish(tmp_path, "a").version == 1
    assert publish(tmp_path, "b", version=2).version == 2
    assert list(list_versions(tmp_path)) == [1, 2]


def test_concurrent_writers_get_different_versions(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        outputs = list(pool.map(lambda number: publish(tmp_path, str(number)), range(24)))
    assert sorted(output.version for output in outputs) == list(range(1, 25))
    assert all((output.path / "saved_model.pb").read_text() == output.inputs["content"] for output in outputs)


def test_a_number_that_is_taken_meanwhile_is_passed_over(tmp_path: Path) -> None:
    slow = VersionDirectory(tmp_path, step="export", parameters={}, inputs={"content": "slow"}, version=None)
    wanted = VersionDirectory(tmp_path, step="export", parameters={}, inputs={"content": "wanted"}, version=2)
    with slow.writing() as directory:
        (directory / "saved_model.pb").write_text("slow")
        publish(tmp_path, "fast")
    assert slow.version == 2
    with pytest.raises(DataError, match="--version=2"), wanted.writing() as directory:
        (directory / "saved_model.pb").write_text("wanted")
    assert (tmp_path / "2" / "saved_model.pb").read_text() == "slow"


def test_a_writer_that_is_killed_leaves_no_version_and_the_next_one_cleans_up(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from mlcore.serving.version_directory import VersionDirectory\n"
        "output = VersionDirectory(Path(sys.argv[1]), step='export', parameters={}, inputs={})\n"
        "with output.writing() as directory:\n"
        "    (directory / 'saved_model.pb').touch(); print('there', flush=True); time.sleep(60)\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", program, tmp_path], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None and writer.stdout.readline() == "there\n"
    assert list_versions(tmp_path) == {}
    with pytest.raises(UsageError, match="holds no SavedModel"):
        find_version(tmp_path)
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    writer.stdout.close()
    assert all(entry.name.startswith(".") for entry in tmp_path.iterdir())
    assert publish(tmp_path).version == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["1"]


def test_a_version_appears_with_everything_in_it(tmp_path: Path) -> None:
    """A reader that polls, as a server does, never sees a version without its last file."""
    seen: list[bool] = []
    with ThreadPoolExecutor(1) as pool:
        until = time.monotonic() + 0.5

        def poll() -> None:
            while time.monotonic() < until:
                for directory in list_versions(tmp_path).values():
                    seen.append((directory / "_SUCCESS.json").is_file() and (directory / "variables").is_dir())

        polling = pool.submit(poll)
        for number in range(10):
            output = VersionDirectory(tmp_path, step="export", parameters={}, inputs={"content": number})
            with output.writing(durable=False) as directory:
                (directory / "saved_model.pb").touch()
                (directory / "variables").mkdir()
        polling.result()
    assert seen and all(seen)


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"--model={tmp_path}/nowhere: no such directory"):
        find_version(tmp_path / "nowhere")


def test_the_digest_follows_graph_and_variables(tmp_path: Path) -> None:
    publish(tmp_path, "a")
    before = model_digest(tmp_path / "1")
    (tmp_path / "1" / "notes.txt").touch()
    assert model_digest(tmp_path / "1") == before
    (tmp_path / "1" / "variables").mkdir()
    (tmp_path / "1" / "variables" / "variables.index").write_text("x")
    assert model_digest(tmp_path / "1") != before


def test_the_card_is_read_back_and_a_broken_one_is_named(tmp_path: Path) -> None:
    assert read_card(tmp_path) == {}
    write_card(tmp_path, {"classes": {"1": "cat"}})
    assert read_card(tmp_path) == {"classes": {"1": "cat"}}
    (tmp_path / "assets.extra" / "model.json").write_text("[1, 2")
    with pytest.raises(DataError, match=r"model\.json: cannot be read as JSON"):
        read_card(tmp_path)


def test_tensorflow_is_not_needed() -> None:
    program = "import sys, mlcore.serving.version_directory; assert 'tensorflow' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
