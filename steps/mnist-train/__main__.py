"""Entry point of the mnist-train image."""

from mlcore.cli import run_step

raise SystemExit(run_step("mnist-train"))
