"""What a step says while it works, and what it leaves on stdout."""

import logging
import re

import pytest

from mlcore.runtime import progress as progress_module
from mlcore.runtime.progress import Progress, format_amount, format_duration
from mlcore.runtime.results import as_text, format_number, print_metrics, print_results

# the pattern of Katib's StdOut collector, v0.19
KATIB = re.compile(r"([\w|-]+)\s*=\s*([+-]?\d*(\.\d+)?([Ee][+-]?\d+)?)")


@pytest.mark.parametrize("value", [0.9731, 1e-7, 123456.789, -0.25, 0.0, 42, 3e-12])
def test_katib_reads_every_number_as_it_is(capsys, value):
    print_metrics(accuracy=value)
    line = capsys.readouterr().out
    assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ accuracy=", line)
    name, number = KATIB.search(line).group(1, 2)
    assert name == "accuracy"
    assert float(number) == pytest.approx(value, rel=1e-5)
    assert "e" not in number.lower()


def test_number_that_is_not_finite_is_left_out(capsys):
    print_metrics(loss=float("nan"), step=3)
    out = capsys.readouterr().out
    assert "loss" not in out and "step=3" in out


def test_results_are_numbers_paths_and_json(capsys):
    print_results({"images": 3, "model": "/m/1", "nothing": None, "counts": {"b": 1, "a": 2}})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith(" images=3")
    assert lines[1:] == ["model=/m/1", 'counts={"a": 2, "b": 1}']
    assert as_text(True) == "true" and format_number(2.5) == "2.500000"


def test_line_tells_how_far_how_fast_and_how_long(caplog, monkeypatch):
    monkeypatch.setattr(progress_module, "LOG_INTERVAL_S", 0)
    with caplog.at_level(logging.INFO), Progress("convert", total=200, unit="images") as progress:
        progress.update(50, "2 rejected")
    line = caplog.messages[0]
    assert line.startswith("convert: 50 of 200 images (25 %), ")
    assert re.search(r"images/s, .* left, 2 rejected$", line)


def test_resumed_amount_does_not_count_for_the_rate():
    with Progress("file", total=10_000_000, unit="B", initial=9_000_000, quiet=True) as progress:
        progress.update(0)
        assert progress.rate == 0
        assert progress.describe().startswith("file: 9.0 MB of 10.0 MB (90 %)")


def test_amounts_and_durations():
    assert [format_amount(n, "B") for n in (999, 1500, 2_500_000_000)] == ["999 B", "1.5 kB", "2.5 GB"]
    assert format_amount(1234, "images") == "1,234 images"
    assert [format_duration(s) for s in (42, 185, 7620)] == ["42 s", "3 min 05 s", "2 h 07 min"]


def test_results_that_are_absent_or_no_number_as_orchestrators_read_them():
    assert as_text(None) == ""
    assert as_text(float("nan")) == "NaN"
