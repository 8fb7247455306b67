"""Entry point of the predict image."""

from mlcore.cli import run_step

raise SystemExit(run_step("predict"))
