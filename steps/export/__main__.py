"""Entry point of the export image."""

from mlcore.cli import run_step

raise SystemExit(run_step("export"))
