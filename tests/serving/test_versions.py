"""`versions`: what is there, what is served, and changes by rename alone."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from mlcore import cli
from mlcore.runtime.errors import DataError, TransientError, UsageError
from mlcore.serving.version_directory import VersionDirectory, list_versions, next_version, retired_versions
from mlcore.serving.versions import describe, promote, versions


def make(base, *numbers, metrics=None):
    """Version directories with as much as a server looks for."""
    for number in numbers:
        extra = base / str(number) / "assets.extra"
        extra.mkdir(parents=True)
        (base / str(number) / "saved_model.pb").write_text(f"model {number}")
        card = {"signatures": {"serving_default": {}, "image_bytes": {}}, "metrics": metrics or {"accuracy": 0.9}}
        (extra / "model.json").write_text(json.dumps(card))
    return base


def content(base, number):
    return (base / str(number) / "saved_model.pb").read_text()


def test_promote_sets_aside_what_is_above_and_brings_back_what_was_aside(tmp_path):
    base = make(tmp_path / "m", 1, 2, 3, 10)
    result = versions(models_dir=base, action="promote", version=2)
    assert (result.versions, result.retired, result.serving) == ((1, 2), (3, 10), 2)
    result = versions(models_dir=base, action="promote", version=3)
    assert (result.versions, result.retired, result.serving) == ((1, 2, 3), (10,), 3)
    assert content(base, 3) == "model 3" and content(base / ".retired", 10) == "model 10"
    assert versions(models_dir=base, action="promote", version=3) == result  # again is free
    with pytest.raises(UsageError, match=r"--version=7: .* has no such version; there is 1, 2, 3, 10"):
        versions(models_dir=base, action="promote", version=7)


def test_rollback_goes_back_one_version_at_a_time(tmp_path):
    base = make(tmp_path / "m", 1, 2, 3)
    assert versions(models_dir=base, action="rollback").serving == 2
    assert versions(models_dir=base, action="rollback").serving == 1
    with pytest.raises(UsageError, match="has 1 version; nothing to roll back to"):
        versions(models_dir=base, action="rollback")
    assert versions(models_dir=base, action="promote", version=3).versions == (1, 3)


def test_a_number_is_never_given_again(tmp_path):
    base = make(tmp_path / "m", 1, 2, 3)
    versions(models_dir=base, action="rollback")
    assert next_version(base) == 4
    versions(models_dir=base, action="prune", keep=1)
    assert list_versions(base).keys() | retired_versions(base).keys() == {2}
    assert next_version(base) == 4
    output = VersionDirectory(base, step="export", parameters={}, inputs={"a": 1})
    with output.writing() as directory:
        (directory / "saved_model.pb").write_text("new")
    assert output.version == 4
    versions(models_dir=base, action="rollback")
    with pytest.raises(DataError, match="--version=4"):
        VersionDirectory(base, step="export", parameters={}, inputs={"a": 2}, version=4).existing()
    # What was made and set aside is not made again, or a repeated export would bring it back.
    same = VersionDirectory(base, step="export", parameters={}, inputs={"a": 1})
    assert same.existing() is not None and same.version == 4 and same.path == base / ".retired" / "4"


def test_prune_removes_the_oldest_but_never_what_is_served(tmp_path):
    base = make(tmp_path / "m", 1, 2, 3, 4, 5)
    versions(models_dir=base, action="promote", version=2)
    result = versions(models_dir=base, action="prune", keep=2)
    assert (result.versions, result.retired, result.removed) == ((2,), (5,), (1, 3, 4))
    assert versions(models_dir=base, action="prune", keep=2).removed == ()
    assert versions(models_dir=base, action="prune", keep=1).versions == (2,)
    assert sorted(entry.name for entry in (base / ".retired").iterdir()) == [".highest-5"]


def test_the_list_shows_age_metrics_signatures_size_and_state(tmp_path, capsys):
    base = make(tmp_path / "m", 1, 2, metrics={"test": {"ap50": 0.81, "images": 72}})
    versions(models_dir=base, action="rollback")
    (base / "1" / "weights").write_bytes(bytes(2_000_000))
    old = time.time() - 3 * 86400 - 3700
    os.utime(base / "1" / "saved_model.pb", (old, old))
    assert cli.main(["versions", str(base)]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].split() == ["version", "state", "age", "size", "metrics", "signatures", "served", "by"]
    assert out[1].split()[:3] == ["2", "set", "aside"]
    assert " ".join(out[2].split()) == "1 highest 3 d 01 h 2.0 MB test.ap50=0.81 image_bytes,serving_default"
    assert "versions=[1]" in out and "retired=[2]" in out
    (base / "1" / "assets.extra" / "model.json").write_text("{")
    with pytest.raises(DataError, match=r"model.json: cannot be read as JSON"):
        versions(models_dir=base)


def test_the_list_shows_which_version_each_server_has(tf_serving, model_bases, capsys):
    base = model_bases["blocks"]
    gone = "127.0.0.1:1"
    result = versions(models_dir=base, server=(tf_serving.address, gone), deadline_s=0.5)
    rows = capsys.readouterr().out.splitlines()[1:]
    assert result.versions == (1, 2)
    assert [row.split("  ")[-1].strip() for row in rows] == [f"{tf_serving.address} (default)", tf_serving.address]
    (_, first) = describe(base, {"a:1": {1: "AVAILABLE"}, "b:2": {1: "LOADING", 9: "END"}})
    assert first.served_by == ("a:1", "b:2 (LOADING)")


def test_prune_keeps_what_a_server_has_and_refuses_where_it_does_not_answer(tf_serving, tmp_path):
    base = make(tmp_path / "blocks", 1, 2, 3, 4)
    result = versions(models_dir=base, action="prune", keep=1, server=(tf_serving.address,))
    assert (result.versions, result.removed) == ((1, 2, 4), (3,))  # the server has 1 and 2
    with pytest.raises(TransientError, match="no answer within"):
        versions(models_dir=base, action="prune", keep=1, server=("127.0.0.1:1",), deadline_s=0.3)
    assert list(list_versions(base)) == [1, 2, 4]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "--models-dir=nowhere: no such directory"),
        ([], "--models-dir must be given"),
        (["m/1"], "is a version itself"),
        (["m", "demote"], "ACTION=demote: expected one of list, promote, rollback, prune"),
        (["m", "promote"], "promote needs --version"),
        (["m", "rollback", "--version=1"], "--version=1 is for promote, not for rollback"),
        (["m", "prune", "--keep=0"], "--keep=0: expected a whole number at least 1"),
        (["m", "list", "more"], "more"),
        (["m", "--models-dir=m"], "--models-dir=m: given a second time as m"),
    ],
)
def test_a_mistake_is_2_and_one_line(tmp_path, monkeypatch, capsys, arguments, words):
    make(tmp_path / "m", 1)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["versions", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and words in captured.err


def test_a_number_in_both_places_is_refused_and_nothing_is_touched(tmp_path):
    base = make(tmp_path / "m", 1, 2)
    make(base / ".retired", 2)
    with pytest.raises(DataError, match="version 2 is both in"):
        versions(models_dir=base, action="rollback")
    assert list(list_versions(base)) == [1, 2] and list(retired_versions(base)) == [2]


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user, for whom the directory is closed")
def test_a_directory_that_cannot_be_written_is_named():
    script = (
        "import os, sys; from pathlib import Path; from mlcore.serving.versions import versions\n"
        "from mlcore.runtime.parameters import parameters_of; parameters_of(versions)\n"  # all that is imported late
        "os.setuid(10001)\n"
        "try: versions(models_dir=Path(sys.argv[1]), action='rollback')\n"
        "except Exception as error: sys.exit(f'{type(error).__name__} {error}')\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        base = make(Path(folder) / "m", 1, 2)
        Path(folder).chmod(0o755)
        done = subprocess.run([sys.executable, "-c", script, str(base)], capture_output=True, text=True)
        assert done.stderr == f"UsageError --models-dir={base}: cannot be written (Permission denied)\n"
        assert list(list_versions(base)) == [1, 2]


def test_a_server_that_polls_always_sees_a_whole_version(tmp_path):
    base = make(tmp_path / "m", 1, 2, 3)
    seen, stop = set(), threading.Event()

    def poll():
        while not stop.is_set():
            found = list_versions(base)
            highest = max(found)
            with contextlib.suppress(FileNotFoundError):  # set aside after it was listed: the next poll sees another
                seen.add((highest, (found[highest] / "saved_model.pb").read_text()))

    poller = threading.Thread(target=poll)
    poller.start()
    try:
        for _ in range(20):
            versions(models_dir=base, action="promote", version=1)
            versions(models_dir=base, action="promote", version=3)
            versions(models_dir=base, action="promote", version=2)
    finally:
        stop.set()
        poller.join()
    assert seen <= {(1, "model 1"), (2, "model 2"), (3, "model 3")} and len(seen) >= 2


def test_killed_at_any_moment_every_version_is_found_and_the_same_command_goes_on(tmp_path):
    script = (
        "import os, sys, signal; from pathlib import Path; from mlcore.cli import main\n"
        "left = int(sys.argv[2]); real = Path.rename\n"
        "def rename(self, target):\n"
        "    global left\n"
        "    if left == 0: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    left -= 1\n"
        "    return real(self, target)\n"
        "Path.rename = rename\n"
        "sys.exit(main(['versions', sys.argv[1], *sys.argv[3:]]))\n"
    )
    for moment in range(4):
        base = make(tmp_path / f"promote{moment}", 1, 2, 3, 4)
        versions(models_dir=base, action="promote", version=1)
        versions(models_dir=base, action="promote", version=4)
        versions(models_dir=base, action="promote", version=3)  # 1, 3 | 2, 4
        command = [sys.executable, "-c", script, str(base), str(moment), "promote", "--version=2"]
        code = subprocess.run(command, capture_output=True).returncode
        assert code == (-signal.SIGKILL if moment < 2 else 0)
        assert list_versions(base).keys() | retired_versions(base).keys() == {1, 2, 3, 4}
        assert not list_versions(base).keys() & retired_versions(base).keys()
        result = versions(models_dir=base, action="promote", version=2)
        assert (result.versions, result.retired) == ((1, 2), (3, 4))
    base = make(tmp_path / "prune", 1, 2, 3, 4)
    subprocess.run([sys.executable, "-c", script, str(base), "1", "prune", "--keep=1"], capture_output=True)
    assert 4 in list_versions(base) and next_version(base) == 5
    assert versions(models_dir=base, action="prune", keep=1).versions == (4,)


def test_links_to_versions_elsewhere_still_lead_there_when_they_are_moved(tmp_path):
    make(tmp_path / "there", 1, 2)
    base = tmp_path / "digits"
    base.mkdir()
    for number in (1, 2):
        (base / str(number)).symlink_to(f"../there/{number}")
    assert versions(models_dir=base, action="rollback").retired == (2,)
    done = versions(models_dir=base, action="promote", version=2)
    assert (done.versions, done.retired, done.serving) == ((1, 2), (), 2)
    assert content(base, 2) == "model 2" and (base / "2").readlink() == Path("../there/2")


def test_a_link_to_a_version_that_is_or_would_be_set_aside_is_not_promoted(tmp_path):
    base = make(tmp_path / "digits", 1, 3)
    (base / "2").symlink_to("3")
    with pytest.raises(UsageError, match=r"2 is a link to .*3, which is not for servers to see then"):
        promote(base, 2)
    assert versions(models_dir=base).versions == (1, 2, 3)


def test_numbers_that_no_server_knows_are_no_versions(tmp_path):
    base = make(tmp_path / "digits", 1, 2**63 - 1, 2**63, "9" * 200)
    assert versions(models_dir=base).versions == (1, 2**63 - 1)


def test_of_two_names_of_a_number_the_shorter_one_is_taken(tmp_path):
    base = make(tmp_path / "digits", "001", "1", "01")
    assert list_versions(base) == {1: base / "1"}


@pytest.mark.parametrize(
    "card", ['{"metrics": 3, "signatures": 5}', '{"signatures": [1, "a"]}', '{"signatures": "abc"}']
)
def test_a_card_of_another_form_is_shown_as_far_as_it_goes(tmp_path, card):
    base = make(tmp_path / "digits", 1)
    (base / "1" / "assets.extra" / "model.json").write_text(card)
    assert versions(models_dir=base).versions == (1,)
