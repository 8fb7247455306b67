"""Entry point of the convert image."""

from mlcore.cli import run_step

raise SystemExit(run_step("convert"))
