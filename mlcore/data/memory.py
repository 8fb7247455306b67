"""Buffers that are used again instead of going back to the system after every image."""

import ctypes
import sys

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
