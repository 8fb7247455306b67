"""The container entry point of the step `train`."""

from mlcore.cli import run_step

raise SystemExit(run_step("train"))
