"""Entry point of the extract image."""

from mlcore.cli import run_step

raise SystemExit(run_step("extract"))
