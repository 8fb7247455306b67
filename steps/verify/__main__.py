"""Entry point of the verify image."""

from mlcore.cli import run_step

raise SystemExit(run_step("verify"))
