# SPDX-License-Identifier: AGPL-3.0-or-later
"""A network namespace for the whole test process, so that nodes, bridges, guests and clients never touch the host's.

It has a mount namespace too: what a test mounts is seen by the programs that it starts, and by nobody else.

`enter()` moves the calling thread (pytest's main thread) once; threads and programs started from then on are in it too.
What needs the real network, such as building the demonstration image, runs inside `outside()`.
"""

import contextlib
import ctypes
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

_CLONE_NEWNET, _CLONE_NEWNS = 0x40000000, 0x00020000
_MS_REC, _MS_PRIVATE = 16384, 1 << 18
_LIBC = ctypes.CDLL(None, use_errno=True)
_OWN = "/proc/thread-self/ns/net"

_descriptors: dict[str, int] = {}
"""`host` and `own` namespace, from `enter` on."""


def enter() -> None:
    """Moves into a namespace of our own with its loopback up; the second call does nothing. Needs root."""
    if "own" in _descriptors:
        return
    _descriptors["host"] = os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
    if _LIBC.unshare(_CLONE_NEWNET | _CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), "unshare")
    if _LIBC.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None):
        raise OSError(ctypes.get_errno(), "mount")
    _descriptors["own"] = os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


@contextlib.contextmanager
def outside() -> Iterator[None]:
    """The calling thread is in the host's namespace within this block."""
    if "own" not in _descriptors:
        yield
        return
    _enter("host")
    try:
        yield
    finally:
        _enter("own")


def _enter(name: str) -> None:
    if _LIBC.setns(_descriptors[name], _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def inhabitants() -> list[int]:
    """Processes in our namespace, but for this one."""
    own = os.fstat(_descriptors["own"])
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal() and int(folder.name) != os.getpid():
            with contextlib.suppress(OSError):
                state = (folder / "ns/net").stat()
                if (state.st_dev, state.st_ino) == (own.st_dev, own.st_ino):
                    found.append(int(folder.name))
    return found
