"""SIGTERM and Ctrl-C end a step cleanly."""

import signal
import subprocess
import sys
import textwrap
import time

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


WAITS = {
    "background": "Background(lambda: time.sleep(60)).result()",
    "thread": "thread = threading.Thread(target=time.sleep, args=(60,), daemon=True); thread.start(); join(thread)",
    "requests": "RequestPool(2).each(time.sleep, [60, 60, 60])",
    "flag": """
with stop_flag() as stop:
    stop.wait(60)
raise stop.error()
""",
}


@pytest.mark.parametrize("wait", WAITS)
def test_a_signal_that_the_kernel_gave_to_another_thread_is_answered(wait):
    """As it does when that thread starts or ends at this moment."""
    script = """
        import signal, sys, threading, time
        from mlcore.kubeflow.background import Background
        from mlcore.runtime.errors import Stopped
        from mlcore.runtime.signals import join, raise_on_stop, stop_flag
        from mlcore.serving.request_pool import RequestPool

        def take_the_signal():
            sys.stdin.readline()
            signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
            time.sleep(60)

        raise_on_stop()
        threading.Thread(target=take_the_signal, daemon=True).start()
        try:
            print("ready", flush=True)
            exec(sys.argv[1])
        except Stopped as stopped:
            sys.exit(stopped.exit_code)
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script), WAITS[wait]],
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # fmt: skip
    with process:
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.3)  # it waits by now
        started = time.monotonic()
        process.stdin.write("now\n")
        process.stdin.flush()
        try:
            assert process.wait(timeout=20) == 143
        finally:
            process.kill()
        assert time.monotonic() - started < 5
