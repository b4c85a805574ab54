# SPDX-License-Identifier: AGPL-3.0-or-later
"""Tells the C library's allocator to give memory back, for a daemon with many threads that now and then needs much."""

import ctypes
from typing import Final

# mallopt(3), glibc's malloc.h
_MMAP_THRESHOLD: Final = -3
_ARENA_MAX: Final = -8

LARGE_BYTES: Final = 256 << 10
"""From this size on a buffer is mapped by itself and goes back to the system as soon as it is freed."""

ARENAS: Final = 2


def give_memory_back() -> bool:
    """Keep large buffers out of the threads' own heaps, and those few; whether the C library knows such settings.

    Without it every thread that has once answered a long list keeps the room for it, megabytes each.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_MMAP_THRESHOLD, LARGE_BYTES)) and bool(mallopt(_ARENA_MAX, ARENAS))
