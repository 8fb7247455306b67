"""One run at a time in a directory."""

import subprocess
import sys
import textwrap
import threading

import pytest

from mlcore.runtime.alone import alone_in
from mlcore.runtime.errors import RestartError


def test_one_run_at_a_time_is_at_work_in_a_directory(tmp_path):
    with (
        alone_in(tmp_path),
        pytest.raises(RestartError, match="another run is at work in it"),
        alone_in(tmp_path, RestartError, wait_s=0.3),
    ):
        pass
    with alone_in(tmp_path):
        pass


def test_a_run_waits_for_its_predecessor_to_end(tmp_path, caplog):
    caplog.set_level("INFO", "mlcore")
    program = """
        import sys, time
        from pathlib import Path
        from mlcore.runtime.alone import alone_in

        with alone_in(Path(sys.argv[1])):
            print("in", flush=True)
            time.sleep(60)
    """
    first = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program), tmp_path], stdout=subprocess.PIPE)
    assert first.stdout.readline() == b"in\n"
    threading.Timer(0.5, first.kill).start()
    with alone_in(tmp_path):
        assert first.wait(5) == -9
    assert caplog.text.count("waiting for its end") == 1
