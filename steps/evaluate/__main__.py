"""Entry point of the evaluate image."""

from mlcore.cli import run_step

raise SystemExit(run_step("evaluate"))
