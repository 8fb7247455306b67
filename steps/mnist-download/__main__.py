"""The container entry point of the step `mnist-download`."""

from mlcore.cli import run_step

raise SystemExit(run_step("mnist-download"))
