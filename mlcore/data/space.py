"""Room on the disk, counted before it is used up."""

import errno
import shutil
import threading
from pathlib import Path

from mlcore.runtime.errors import TransientError
from mlcore.runtime.progress import format_amount

# What a write says when there is no room: the disk, the quota, the limit of a file's size (ulimit -f).
DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class DiskFull(TransientError):
    """No room for the rest of a file."""


class Space:
    """Room on the disk for all transfers into a directory together, checked before their bytes arrive."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        self._needed: dict[str, int] = {}

    def reserve(self, name: str, needed: int) -> None:
        """Note that a file still needs so many bytes.

        Raises:
            DiskFull: There is less room than the files in transfer need.
        """
        with self._lock:
            self._needed[name] = needed
            missing = sum(self._needed.values()) - shutil.disk_usage(self._directory).free
        if missing > 0:
            raise DiskFull(
                f"{self._directory / name}: no room on the disk: {missing:,} bytes are missing "
                f"({format_amount(missing, 'B')}); free them and run the step again"
            )

    def used(self, name: str, count: int) -> None:
        """Note that bytes of a file are on the disk."""
        if name in self._needed:
            self._needed[name] -= count

    def release(self, name: str) -> None:
        """Forget a file."""
        with self._lock:
            self._needed.pop(name, None)
