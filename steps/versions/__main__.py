"""Entry point of the versions image."""

from mlcore.cli import run_step

raise SystemExit(run_step("versions"))
