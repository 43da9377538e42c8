"""Memory that a step frees stays with the process, so that the next step does not fetch it from the system again."""

from __future__ import annotations

import ctypes
import ctypes.util

_TRIM, _MMAP = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
_LARGEST = (1 << 30, 1 << 25)  # bytes of a block; glibc before 2.35 takes the second at most


def keep_freed_memory() -> bool:
    """Tell the C library's allocator to keep what is freed, for the whole process; whether it can.

    By default glibc gives large blocks back to the system as soon as they are free. A step on a CPU whose temporaries
    have tens of MiB then spends a fifth of its time on pages that the system has to clear each time. Other C libraries
    have no such setting.
    """
    library = ctypes.CDLL(ctypes.util.find_library("c"))
    if not hasattr(library, "mallopt") or not hasattr(library, "gnu_get_libc_version"):
        return False
    return any(library.mallopt(_MMAP, size) for size in _LARGEST) and bool(library.mallopt(_TRIM, _LARGEST[0]))
