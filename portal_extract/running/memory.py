"""How the C library keeps memory."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress

# parameters of mallopt(3) in glibc
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_MMAP_BYTES, _TRIM_BYTES = 32 << 20, 128 << 20


def keep_freed_memory() -> None:
    """Let the C library keep freed memory for the next use, in this process.

    Computation takes and frees buffers of some megabytes thousands of times. If each goes back to the system,
    the system clears it each time anew; dask asks its workers to do just that (``MALLOC_TRIM_THRESHOLD_``),
    which takes as much time again as the computation itself. Does nothing where there is no glibc.
    """
    if not sys.platform.startswith("linux"):
        return
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(_M_MMAP_THRESHOLD, _MMAP_BYTES)
        library.mallopt(_M_TRIM_THRESHOLD, _TRIM_BYTES)
