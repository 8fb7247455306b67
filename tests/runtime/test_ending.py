"""Ends of a process without what others do at its end."""

import subprocess
import sys

import pytest

PROGRAM = """
import atexit, sys, time
from mlcore.runtime.ending import end_without_clean_up, note_exit_code
atexit.register(time.sleep, 60)  # as TensorFlow waits for servers that are gone
end_without_clean_up({given})
print("said")
{noted}
raise SystemExit(3)
"""


@pytest.mark.parametrize(("given", "noted", "code"), [("", "note_exit_code(3)", 3), ("138", "", 138)])
def test_the_process_ends_at_once_with_its_code_and_all_that_it_said(given, noted, code):
    program = PROGRAM.format(given=given, noted=noted)
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    assert (ended.returncode, ended.stdout) == (code, "said\n")


def test_without_a_command_line_the_clean_up_is_done():
    program = PROGRAM.format(given="", noted="").replace("time.sleep, 60", "print, 'cleaned up'")
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    assert (ended.returncode, ended.stdout) == (3, "said\ncleaned up\n")
