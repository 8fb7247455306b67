"""One run at a time in a directory that is filled file by file."""

import contextlib
import fcntl
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

from mlcore.runtime.errors import MlcoreError, TransientError

log = logging.getLogger(__name__)

_PREDECESSOR_S = 30.0  # in which a training that was told to stop saves its checkpoint
_POLL_S = 0.2


@contextlib.contextmanager
def alone_in(
    directory: Path, error: type[MlcoreError] = TransientError, *, wait_s: float = _PREDECESSOR_S
) -> Iterator[None]:
    """The only run that fills a directory; the lock goes with the process. Another one is waited for.

    Args:
        directory: The directory, which is there.
        error: What is raised when the wait was in vain.
        wait_s: How long another run is waited for, in seconds.

    Raises:
        MlcoreError: Another run is still at work in it; of the class `error`.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        end = time.monotonic() + wait_s
        told = False
        while not _lock_now(descriptor):
            if time.monotonic() > end:
                raise error(f"{directory}: another run is at work in it; wait for its end, or name another folder")
            if not told:
                log.info("%s: another run is at work in it; waiting for its end", directory)
                told = True
            time.sleep(_POLL_S)
        yield
    finally:
        os.close(descriptor)


def _lock_now(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        log.debug("no lock: %s", error)  # some network file systems have none
    return True
