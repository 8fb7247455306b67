"""Clusters of real processes."""

import subprocess
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


@pytest.fixture(scope="session")
def records(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """BCCD as records in four shards."""
    folder = tmp_path_factory.mktemp("bccd")
    for step in (
        ["extract", f"--archive={shared_data / 'bccd.tar.gz'}", f"--output-dir={folder / 'raw'}"],
        ["convert", f"--data-dir={folder / 'raw'}", f"--output-dir={folder / 'records'}", "--shards=4"],
    ):
        subprocess.run([sys.executable, "-m", "mlcore", *step], check=True, capture_output=True)
    return folder / "records"
