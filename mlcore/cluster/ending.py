"""Ends of a process for which TensorFlow's own end would wait in vain, or which it would spoil for other members."""

import atexit
import logging
import os
import sys


def end_process(exit_code: int) -> None:
    """End at once, with everything said that was to be said."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)


def end_without_clean_up(exit_code: int) -> None:
    """When this process ends by itself, it does so without TensorFlow's clean-up."""
    atexit.register(end_process, exit_code)
