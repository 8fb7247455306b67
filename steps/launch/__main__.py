"""Entry point of the launch image."""

from mlcore.cli import run_step

raise SystemExit(run_step("launch"))
