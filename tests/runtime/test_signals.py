"""SIGTERM and Ctrl-C end a step cleanly."""

import signal
import subprocess
import sys
import textwrap

import pytest

from mlcore.runtime.signals import stop_flag


def run(script):
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signal_raises_past_error_handlers(number, code):
    process = run("""
        import time
        from mlcore.runtime.errors import Stopped
        from mlcore.runtime.signals import raise_on_stop
        raise_on_stop()
        try:
            try:
                print("ready", flush=True); time.sleep(60)
            except Exception:
                print("swallowed")
        except Stopped as stopped:
            print("clean", flush=True); raise SystemExit(stopped.exit_code)
    """)
    process.send_signal(number)
    assert process.communicate(timeout=10)[0] == "clean\n"
    assert process.returncode == code


def test_flag_lets_a_step_finish_what_it_does():
    process = run("""
        from mlcore.runtime.errors import Stopped
        from mlcore.runtime.signals import stop_flag
        with stop_flag() as stop:
            print("ready", flush=True)
            assert stop.wait(30)
            print("saved", flush=True)
        raise SystemExit(stop.error().exit_code)
    """)
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=10)[0] == "saved\n"
    assert process.returncode == 143


def test_flag_can_let_signals_raise_for_a_while():
    process = run("""
        import time
        from mlcore.runtime.errors import Stopped
        from mlcore.runtime.signals import stop_flag
        with stop_flag() as stop:
            try:
                with stop.raising():
                    print("ready", flush=True); time.sleep(60)
            except Stopped as stopped:
                print("torn", stopped.exit_code, flush=True)
            assert not stop.is_set()
            stop.set(15)
            try:
                with stop.raising():
                    print("not reached")
            except Stopped:
                print("before", flush=True)
    """)
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=10)[0] == "torn 143\nbefore\n"


def test_flag_gives_the_handlers_back():
    before = signal.getsignal(signal.SIGTERM)
    with stop_flag():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before
