"""The container entry point of the step `download`."""

from mlcore.cli import run_step

raise SystemExit(run_step("download"))
