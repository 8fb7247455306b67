"""Entry point of the train image."""

from mlcore.cli import run_step

raise SystemExit(run_step("train"))
