"""Entry point of the serve image."""

from mlcore.cli import run_step

raise SystemExit(run_step("serve"))
