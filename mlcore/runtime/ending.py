"""Ends of a process for which TensorFlow's own end would wait in vain, or which it would spoil for other members."""

import atexit
import logging
import os
import sys

_exit_code: int | None = None


def note_exit_code(exit_code: int) -> None:
    """Say with which code this process is about to end; the command line does."""
    global _exit_code
    _exit_code = exit_code


def end_process(exit_code: int) -> None:
    """End at once, with everything said that was to be said."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)


def end_without_clean_up(exit_code: int | None = None) -> None:
    """When this process ends by itself, it does so without TensorFlow's clean-up.

    Args:
        exit_code: Code to end with; none: that of the command line. In a process that is not one, such as a notebook,
            nothing is forgone then.
    """
    atexit.register(_end, exit_code)


def _end(exit_code: int | None) -> None:
    code = _exit_code if exit_code is None else exit_code
    if code is not None:
        end_process(code)
