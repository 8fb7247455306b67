import io
import json
import logging
import warnings
from collections.abc import Iterator

import pytest

from mlcore.runtime import logs


@pytest.fixture(autouse=True)
def root_logger() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    with warnings.catch_warnings():
        yield
    root.handlers[:] = handlers
    root.setLevel(level)


def test_a_line_goes_to_what_stderr_is_when_it_is_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a notebook or a test, which put a stream of their own in its place and close it."""
    first, second = io.StringIO(), io.StringIO()
    monkeypatch.setattr("sys.stderr", first)
    logs.configure()
    logging.getLogger("mlcore.one").info("hello")
    assert first.getvalue().endswith("Z INFO mlcore.one hello\n")
    first.close()
    monkeypatch.setattr("sys.stderr", second)
    logging.getLogger("mlcore.two").info("again")
    assert second.getvalue().endswith("Z INFO mlcore.two again\n")
    assert "Logging error" not in second.getvalue()


def test_warnings_of_libraries_are_lines_of_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(log_format="json")
    warnings.warn("cut\n  short", UserWarning, stacklevel=1)
    entry = json.loads(capsys.readouterr().err)
    assert (entry["level"], entry["module"]) == ("WARNING", "py.warnings")
    assert entry["message"].startswith("UserWarning: cut short (test_logs.py:")
