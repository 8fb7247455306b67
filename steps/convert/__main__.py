"""The container entry point of the step `convert`."""

from mlcore.cli import run_step

raise SystemExit(run_step("convert"))
