"""Entry point of the mnist-evaluate image."""

from mlcore.cli import run_step

raise SystemExit(run_step("mnist-evaluate"))
