# SPDX-License-Identifier: AGPL-3.0-or-later
"""Files that go into a running container and come out of it.

A child of ours enters the container's user and mount namespaces and is its root there: paths mean what they mean
inside, links lead nowhere else, owners are the container's. In an unprivileged container no right of the host's root is
left to it; the root of a privileged one is the host's. It stays outside of the container's process namespace, so nobody
inside sees it. No program of the container is needed.
"""

import os
import secrets
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final

from orrery.errors import Failure
from orrery.system import kernel
from orrery.system.kernel import StepError

_CLONE_NEWUSER: Final = 0x10000000
_CHUNK: Final = 1 << 20
_MAX_TOLD: Final = 4096
_LONGEST_NAME: Final = 200


def push(pid: int, source: int, target: str, *, mode: int, owner: tuple[int, int]) -> None:
    """Write what the descriptor `source` gives as the file `target`, which appears whole or not at all.

    `pid` is the container's first process; `mode` and `owner` (uid, gid) are as the container sees them. Raises
    Failure.
    """

    def work() -> str:
        folder, name = os.path.split(target)
        if not name or os.path.isdir(target):  # noqa: PTH112  (nothing may be imported in there)
            raise OSError(0, "it is a folder; name the file")
        new = f"{folder}/.{name[:_LONGEST_NAME]}.{secrets.token_hex(4)}"
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            _copy(source, descriptor)
            os.fchown(descriptor, *owner)
            os.fchmod(descriptor, mode)
            os.fsync(descriptor)
            os.rename(new, target)  # noqa: PTH104
            return ""
        except BaseException:
            os.unlink(new)  # noqa: PTH108
            raise

    _inside(pid, f"unable to write '{target}' in the container", work)


def pull(pid: int, source: str, target: int, *, keep_mode: bool = True) -> None:
    """Write what the file `source` holds into the descriptor `target`, with its mode. Raises Failure."""

    def work() -> str:
        descriptor = os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        state = os.fstat(descriptor)
        if not stat.S_ISREG(state.st_mode):
            raise OSError(0, "it is no regular file")
        _copy(descriptor, target)
        return str(state.st_mode & 0o777)

    mode = int(_inside(pid, f"unable to read '{source}' in the container", work))
    if keep_mode:
        os.fchmod(target, mode)


def _copy(source: int, target: int) -> None:
    while piece := os.read(source, _CHUNK):
        rest = memoryview(piece)
        while rest:
            rest = rest[os.write(target, rest) :]


def _inside(pid: int, what: str, work: Callable[[], str]) -> str:
    """Run `work` as the container's root, in its mounts; gives what it gave, or raises what it raised."""
    reading, writing = os.pipe2(os.O_CLOEXEC)
    try:
        child = os.fork()
        if child == 0:
            _become(pid, writing, work)
    finally:
        os.close(writing)
    try:
        told = os.read(reading, _MAX_TOLD).decode("utf-8", "replace")
    finally:
        os.close(reading)
        _, status = os.waitpid(child, 0)
    if status != 0:
        raise Failure(f"{what}: {told or 'the helper was killed'}")
    return told


def _become(pid: int, writing: int, work: Callable[[], str]) -> None:
    code = 1
    try:
        folder = f"/proc/{pid}/ns"
        mounts = os.open(f"{folder}/mnt", os.O_RDONLY | os.O_CLOEXEC)
        if not os.path.samestat(Path(f"{folder}/user").stat(), Path("/proc/self/ns/user").stat()):
            kernel.enter(f"{folder}/user", _CLONE_NEWUSER)
        kernel.enter(f"/proc/self/fd/{mounts}", kernel.CLONE_NEWNS)
        os.setgroups([])
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
        os.umask(0o077)
        os.write(writing, work().encode())
        code = 0
    except StepError as error:
        os.write(writing, f"{error.step}: {os.strerror(error.code)}".encode())
    except OSError as error:
        os.write(writing, str(error.strerror or error).encode()[:_MAX_TOLD])
    finally:
        os._exit(code)
