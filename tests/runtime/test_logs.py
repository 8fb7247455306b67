import io
import json
import logging
import subprocess
import sys
import textwrap
from collections.abc import Iterator

import pytest

from mlcore.runtime import logs


@pytest.fixture(autouse=True)
def root_logger() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
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


def test_warnings_of_libraries_are_lines_of_the_log() -> None:
    script = """
        import warnings
        from mlcore.runtime import logs
        logs.configure(log_format="json")
        warnings.warn("cut\\n  short")
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    entry = json.loads(done.stderr)
    assert (entry["level"], entry["module"]) == ("WARNING", "py.warnings")
    assert entry["message"].strip() == "UserWarning: cut short (<string>:5)"
