"""The report of `verify`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from mlcore.data.report import Report
from mlcore.serving.verification.golden import Outcome
from mlcore.serving.verification.samples import Measured


def write_report(
    path: Path,
    *,
    model: str,
    facts: Mapping[str, Any],
    problems: Sequence[str],
    measured: Measured,
    golden: Sequence[Outcome],
    edges: Sequence[Outcome],
) -> None:
    """One HTML file.

    Args:
        path: Its name.
        model: The served model in words.
        facts: The numbers that a reader looks for first.
        problems: Why the model is not accepted; empty where it is.
        measured: What the samples showed.
        golden: Golden cases.
        edges: Edge cases.
    """
    report = Report("Verification", f"Of {model}.")
    report.facts({"verdict": "failed" if problems else "passed", **facts})
    if problems:
        report.section("Why it failed").table(["reason"], [[problem] for problem in problems])
    if measured.samples:
        report.section("Samples", f"{measured.samples:,} samples were sent.")
        report.table(["measure", "value"], sorted(measured.quality.items()))
        if measured.by_class:
            columns = list(next(iter(measured.by_class.values())))
            rows = [[name, *(row[column] for column in columns)] for name, row in measured.by_class.items()]
            report.table(["class", *columns], rows, "By class")
        if measured.wrong:
            pictures = [
                (Image.fromarray(pixels).resize((112, 112), Image.Resampling.NEAREST), text)
                for pixels, text in measured.wrong
            ]
            report.images("Taken for something else", pictures, width=160)
        report.section("Latency")
        report.table(["", "value"], [(name, value) for name, value in measured.latency().items()])
        report.histogram("Time of requests with one sample", measured.milliseconds, bins=40, x_label="ms")
    for heading, outcomes in (("Golden cases", golden), ("Edge cases", edges)):
        if outcomes:
            report.section(heading).table(
                ["case", "result", "answer", "problem"],
                [[each.name, "failed" if each.problem else "passed", each.answer, each.problem] for each in outcomes],
            )
    report.write(path)
