"""What this process does with memory that it freed."""

from __future__ import annotations

import ctypes

# <malloc.h>
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -2, -3, -8
_KEPT_BYTES, _PAD_BYTES, _MAPPED_BYTES = 128 * 2**20, 16 * 2**20, 32 * 2**20
_CHUNK_BYTES = 16 * 2**20


def keep_freed_memory() -> bool:
    """Has glibc's malloc keep freed memory for what comes next; returns whether it does. For the start of a process.

    By default it hands memory at the end of its heap back as soon as 128 KiB are free. Buffers of the size of a payload
    are then given back and taken again all the time, and the kernel clears each page anew: encoding groups of 100 KB
    takes three times as long. What is bigger than 32 MiB still goes back at once, as by default.
    """
    return _set(
        {_M_TRIM_THRESHOLD: _KEPT_BYTES, _M_TOP_PAD: _PAD_BYTES, _M_MMAP_THRESHOLD: _MAPPED_BYTES},
    )


def keep_freed_chunks() -> bool:
    """The same for commands that move models in chunks: blocks of up to 16 MiB stay, for all threads together.

    Larger blocks go back at once: kept, they would leave holes that no other block fits into.
    """
    return _set({_M_TRIM_THRESHOLD: _CHUNK_BYTES, _M_MMAP_THRESHOLD: _CHUNK_BYTES, _M_ARENA_MAX: 1})


def _set(options: dict[int, int]) -> bool:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False  # another C library
    done = [mallopt(option, value) == 1 for option, value in options.items()]
    return all(done)
