# SPDX-License-Identifier: AGPL-3.0-or-later
"""Tests that hand hostile paths to code that writes and removes run where a mistake cannot reach the host.

Each runs in a thread with a mount namespace of its own (unshare(2) takes a single thread along), in which everything
but pytest's folder of temporary files is read-only. A path that escapes then fails, instead of destroying the machine.
"""

import ctypes
import os
import struct
import threading

import pytest

SEALED = ("test_tree", "test_setup")
CLONE_NEWNS = 0x00020000
MS_BIND, MS_REC, MS_PRIVATE = 4096, 16384, 1 << 18
AT_FDCWD, AT_RECURSIVE, RDONLY, SYS_MOUNT_SETATTR = -100, 0x8000, 1, 442
_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), "cannot seal the test off from the host")


def _attributes(path: bytes, flags: int, *, wanted: int = 0, cleared: int = 0) -> None:
    change = struct.pack("=QQQQ", wanted, cleared, 0, 0)
    _check(_libc.syscall(SYS_MOUNT_SETATTR, AT_FDCWD, path, flags, change, len(change)))


def _seal(writable: str) -> None:
    folder = os.fsencode(writable)
    _check(_libc.unshare(CLONE_NEWNS))
    _check(_libc.mount(b"none", b"/", None, ctypes.c_ulong(MS_REC | MS_PRIVATE), None))
    _check(_libc.mount(folder, folder, None, ctypes.c_ulong(MS_BIND), None))
    _attributes(b"/", AT_RECURSIVE, wanted=RDONLY)
    _attributes(folder, 0, cleared=RDONLY)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    if not pyfuncitem.path.name.startswith(SEALED):
        return None
    if os.geteuid() != 0:
        pytest.skip("only root can seal the test off from the host")
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    base = pyfuncitem.config._tmp_path_factory.getbasetemp()
    problems: list[BaseException] = []

    def work() -> None:
        try:
            _seal(str(base))
            pyfuncitem.obj(**arguments)
        except BaseException as error:
            problems.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if problems:
        raise problems[0]
    return True
