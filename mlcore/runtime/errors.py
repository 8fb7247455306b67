"""Errors that end a step, each with the exit code that an orchestrator acts on.

A message is one line that names the flag or file, the value and what was expected. An error that is none of these is a
bug: the step ends with 1 and a traceback.
"""

import signal

EXIT_BUG = 1


class MlcoreError(Exception):
    """Base of the errors that a step reports in one line instead of a traceback."""

    exit_code = EXIT_BUG


class UsageError(MlcoreError):
    """A wrong or missing parameter, or an input path that is not there. Trying again does not help."""

    exit_code = 2


class DataError(MlcoreError):
    """The data is bad (EX_DATAERR of sysexits.h). Trying again does not help."""

    exit_code = 65


class TransientError(MlcoreError):
    """A failure that may pass, after the last retry (EX_TEMPFAIL of sysexits.h)."""

    exit_code = 75


class RestartError(MlcoreError):
    """A member of a cluster should be started again: a TFJob recreates pods that exit with 128 or more."""

    exit_code = 138


class Stopped(BaseException):
    """SIGTERM or Ctrl-C. Not an Exception, so that no handler of errors swallows it; `finally` blocks still run."""

    def __init__(self, signal_number: int = signal.SIGTERM) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.exit_code = 128 + signal_number
