"""Entry point of the mnist-download image."""

from mlcore.cli import run_step

raise SystemExit(run_step("mnist-download"))
