"""The container entry point of the step `mnist-train`."""

from mlcore.cli import run_step

raise SystemExit(run_step("mnist-train"))
