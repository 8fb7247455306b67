"""A step of the tests' own, to try the command line without the weight of a real one."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from mlcore.runtime.errors import DataError, TransientError
from mlcore.runtime.parameters import Environment, Range, Sections, step


@dataclass(frozen=True)
class SampleResult:
    """What the step returns."""

    batch_size: int
    rate: float
    seen: str
    model: Path


@step
def sample(
    *,
    data_dir: Path,
    batch_size: Annotated[int, Range(min=1)] = 32,
    rate: Annotated[float, Range(min=0, max=1)] = 0.5,
    url: tuple[str, ...] = (),
    layout: Literal["auto", "voc"] = "auto",
    overwrite: bool = False,
    home: Annotated[Path | None, Environment(("SAMPLE_HOME",))] = None,
    overrides: Annotated[Mapping[str, Any] | None, Sections(("task", "trainer"))] = None,
    fail: Literal["no", "data", "transient", "bug", "wait"] = "no",
) -> SampleResult:
    """Show what arrived.

    The second paragraph
    of its help.

    Args:
        data_dir: Folder with the data.
        batch_size: Examples a step.
        rate: Share.
        url: Address.
        layout: Layout of the folder.
        overwrite: Replace what is there.
        home: Home.
        overrides: Nested values.
        fail: How to fail.
    """
    if fail == "data":
        raise DataError(f"{data_dir}: 3 boxes\nare bad")
    if fail == "transient":
        raise TransientError("the server is away")
    if fail == "bug":
        raise RuntimeError("surprise")
    if fail == "wait":
        import time

        print("waiting", flush=True)
        time.sleep(60)
    seen = f"url={list(url)} layout={layout} overwrite={overwrite} home={home} overrides={overrides}"
    return SampleResult(batch_size=batch_size, rate=rate, seen=seen, model=data_dir / "model")
