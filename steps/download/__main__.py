"""Entry point of the download image."""

from mlcore.cli import run_step

raise SystemExit(run_step("download"))
