"""The quickstart runs real commands, stops cleanly, goes on where it was, and says what came out."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from examples.quickstart.chain import Chain, StepFailed, serving, shown

SMALL = ["--train=24", "--val=4", "--test=8", "--steps=6", "--min-ap50=0"]


def start(output: Path, *flags: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "examples.quickstart", f"--output-dir={output}", *flags]
    return subprocess.Popen(
        command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def test_a_step_is_shown_timed_and_its_results_are_returned(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "a.bin").write_bytes(b"content")
    chain = Chain()
    with serving(tmp_path / "served") as address:
        results = chain.run("download", f"--url={address}/a.bin", f"--output-dir={tmp_path}/out")
    assert (tmp_path / "out" / "a.bin").read_bytes() == b"content"
    assert results["files"] == "1" and results["bytes"] == "7" and chain.seconds["download"] > 0
    printed = capfd.readouterr().out
    assert "$ mlcore download" in printed and "  bytes=7" in printed


def test_a_step_that_fails_ends_the_chain_with_its_code(tmp_path: Path) -> None:
    with pytest.raises(StepFailed, match="mlcore extract ended with 2") as raised:
        Chain().run("extract", f"--archive={tmp_path}/nowhere.tar.gz", f"--output-dir={tmp_path}/out")
    assert raised.value.code == 2


def test_a_long_command_is_shown_as_one_can_paste_it() -> None:
    text = shown(["mlcore", "predict", "--model=" + "x" * 60, "--input=" + "y" * 60 + "/*.jpg"])
    assert text.count("\\\n") == 2 and f"'--input={'y' * 60}/*.jpg'" in text


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    process = start(tmp_path, "--overwrite")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 2 and "not made by the quickstart" in output
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.slow
def test_the_chain_stops_on_ctrl_c_goes_on_and_is_free_again(tmp_path: Path) -> None:
    output = tmp_path / "quickstart"
    process = start(output, *SMALL)
    assert process.stdout is not None
    for line in process.stdout:
        if "mlcore train" in line:
            break
    time.sleep(2)
    os.kill(process.pid, signal.SIGINT)
    started = time.monotonic()
    rest, _ = process.communicate(timeout=30)
    assert process.returncode == 130 and "run it again to go on" in rest
    assert time.monotonic() - started < 15

    process = start(output, *SMALL)
    printed, _ = process.communicate(timeout=600)
    assert process.returncode == 0, printed
    for words in ("AP50 on held-out pictures", "images                     36", "training steps             6"):
        assert words in printed
    report = (output / "report.html").read_text()
    for words in ("Boxes by class", "Size of the boxes", "Training pictures with their boxes", "Lines of total"):
        assert words in report
    assert report.count("<img ") == 20  # 12 to train on and 8 held out

    started = time.monotonic()
    process = start(output, *SMALL)
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 0 and printed.count("is up to date") >= 4
    assert time.monotonic() - started < 60

    process = start(output, *SMALL, "--seed=5")
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 2 and "other settings; pass --overwrite" in printed
