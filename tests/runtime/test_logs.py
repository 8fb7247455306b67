import io
import logging
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
