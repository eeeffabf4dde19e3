"""Has the C library keep freed memory for the next large block, instead of fetching it from the kernel page by page.

Reading a checkpoint allocates and frees blocks of the size of a chunk all the time. By default glibc maps and unmaps
each of them, and touching fresh pages then costs several times what the copying does.
"""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # <malloc.h>
#: Larger blocks go back at once: kept, they would leave holes that no other block fits into.
_KEEP_BYTES = 16 << 20


def keep_freed_memory() -> bool:
    """Freed blocks of up to 16 MB stay with the process, for all its threads; for commands that move much data.

    Returns:
      Whether the C library can do so; it is glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((_TRIM_THRESHOLD, _KEEP_BYTES), (_MMAP_THRESHOLD, _KEEP_BYTES), (_ARENA_MAX, 1))
    return not [name for name, value in settings if mallopt(name, value) != 1]
