"""Clusters of real processes."""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from processes import PROGRAM, LocalCluster


@pytest.fixture
def small_cluster(tmp_path: Path) -> Iterator[Callable[..., LocalCluster]]:
    """Starts clusters of the small program; whatever is left of them is killed in the end."""
    with ExitStack() as stack:

        def make(*flags: str, **counts: Any) -> LocalCluster:
            command = [*PROGRAM, f"--model-dir={tmp_path / 'model'}", *flags]
            return stack.enter_context(LocalCluster(tmp_path / "logs", command, **counts))

        yield make
