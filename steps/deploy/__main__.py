"""Entry point of the deploy image."""

from mlcore.cli import run_step

raise SystemExit(run_step("deploy"))
