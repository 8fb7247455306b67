"""Memory of a conversion: buffers that are used again, and no search for garbage where there is none."""

import atexit
import contextlib
import ctypes
import gc
import sys
from collections.abc import Iterator

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc
_KEEP_BYTES = 256 << 20
_HEAP_BYTES = 64 << 20


def keep_freed_memory() -> None:
    """Let malloc keep what was freed, in this process.

    Each image needs a few buffers of 100 kB or more. By default glibc maps such a buffer anew, page by page, and unmaps
    it when it is freed: that was half of the system time of a conversion.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):  # glibc; musl has none
            libc.mallopt(_M_MMAP_THRESHOLD, _HEAP_BYTES)
            libc.mallopt(_M_TRIM_THRESHOLD, _KEEP_BYTES)


def exit_without_collecting() -> None:
    """Let the end of this process be quick: the system takes all memory back, so nobody need search it for cycles.

    Python does that several times at its exit; it was a twentieth of the time of a conversion.
    """
    atexit.unregister(gc.freeze)  # once is enough
    atexit.register(gc.freeze)


@contextlib.contextmanager
def collector_paused() -> Iterator[None]:
    """No search for reference cycles in a block (or a function, as a decorator) that only makes objects to keep.

    Lists of all files and annotations grow there, and Python walks over all of them again and again. Not for work on
    pictures: Pillow makes cycles that hold pixels.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
