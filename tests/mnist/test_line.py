"""The whole line on the real set, over HTTP, as `make mnist` runs it."""

import re
import subprocess
import sys

import pytest

from examples.quickstart.chain import serving


@pytest.mark.slow
def test_line_reaches_98_percent_on_real_mnist(shared_data, project, tmp_path):
    with serving(shared_data / "mnist") as address:
        command = [sys.executable, "-m", "examples.mnist", f"--output-dir={tmp_path}", f"--mirror={address}"]
        done = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    assert float(re.findall(r"test accuracy +([\d.]+)", done.stdout)[-1]) >= 0.98
    page = (tmp_path / "report.html").read_text()
    assert "Confusion" in page and "The MNIST line" in page
    # Again, without a server: everything is there.
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("up to date") == 3
