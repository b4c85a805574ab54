# SPDX-License-Identifier: AGPL-3.0-or-later
"""Whether programs may use io_uring, Linux' fast interface for reading and writing (io_uring(7))."""

import ctypes
import os
from functools import cache
from pathlib import Path
from typing import Final

_SWITCH: Final = Path("/proc/sys/kernel/io_uring_disabled")
_SYS_IO_URING_SETUP: Final = 425  # the same number on every architecture
_PARAMETERS: Final = 120  # bytes of struct io_uring_params


@cache
def available() -> bool:
    """Whether a program without privileges can set up a ring: the kernel has it, and nothing switched it off.

    Containers often filter the call, so it is tried.
    """
    try:
        if _SWITCH.read_text().strip() != "0":
            return False
    except OSError:
        pass  # kernels before 6.6 have no switch
    libc = ctypes.CDLL(None, use_errno=True)
    ring = libc.syscall(ctypes.c_long(_SYS_IO_URING_SETUP), ctypes.c_uint(1), ctypes.create_string_buffer(_PARAMETERS))
    if ring < 0:
        return False
    os.close(ring)
    return True
