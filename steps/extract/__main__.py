"""The container entry point of the step `extract`."""

from mlcore.cli import run_step

raise SystemExit(run_step("extract"))
