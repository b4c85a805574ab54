# SPDX-License-Identifier: AGPL-3.0-or-later
"""Unix sockets below paths of any length.

A socket's address holds 107 bytes. The folder is therefore opened and addressed through /proc/self/fd, so that only
the last part of the path must be short. A socket gets its rights before anybody can connect to it.
"""

import contextlib
import os
import socket
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from orrery.errors import Failure

_BACKLOG = 128
_LONGEST_NAME = 64  # /proc/self/fd/1048576/ and this fit into 107 bytes
_UCRED = struct.Struct("=iII")  # unix(7): pid, uid, gid


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end of a unix socket, vouched for by the kernel."""

    pid: int
    uid: int
    gid: int


def listen_unix(
    path: Path, *, mode: int = 0o600, uid: int = -1, gid: int = -1, backlog: int = _BACKLOG
) -> socket.socket:
    """A listening stream socket at `path`, replacing what an earlier process left there.

    It is bound under a hidden name in the same folder, given its owner and mode, and only then renamed to `path`.
    Raises Failure; also when something that is no socket lies at `path`.
    """
    with _folder(path) as folder:
        _refuse_other_kinds(path)
        hidden = f".{path.name}.{os.getpid()}"
        server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(hidden, dir_fd=folder)
            os.fchmod(server.fileno(), 0o600)  # the file that bind makes takes its mode from the socket
            server.bind(f"/proc/self/fd/{folder}/{hidden}")
            if uid != -1 or gid != -1:
                os.chown(hidden, uid, gid, dir_fd=folder, follow_symlinks=False)
            os.chmod(f"/proc/self/fd/{folder}/{hidden}", mode)  # noqa: PTH101  (relative to the open folder)
            server.listen(backlog)
            os.rename(hidden, path.name, src_dir_fd=folder, dst_dir_fd=folder)
        except OSError as error:
            server.close()
            raise Failure(f"unable to listen at '{path}': {error.strerror}") from error
    return server


def connect_unix(path: Path, timeout: float | None = None) -> socket.socket:
    """A stream socket connected to `path`; `timeout` in seconds stays set on it.

    Raises FileNotFoundError or ConnectionRefusedError when nobody listens, TimeoutError, Failure otherwise.
    """
    with _folder(path) as folder:
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        client.settimeout(timeout)
        try:
            client.connect(f"/proc/self/fd/{folder}/{path.name}")
        except (FileNotFoundError, ConnectionRefusedError, TimeoutError):
            client.close()
            raise
        except OSError as error:
            client.close()
            raise Failure(f"unable to connect to '{path}': {error.strerror}") from error
    return client


@contextlib.contextmanager
def short_path(path: Path) -> Iterator[str]:
    """A short name for `path`, valid in this process within the block: for libraries that take an address."""
    with _folder(path) as folder:
        yield f"/proc/self/fd/{folder}/{path.name}"


def peer(connection: socket.socket) -> Peer:
    """Credentials of the process that connected (at the time it did)."""
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    return Peer(*_UCRED.unpack(data))


@contextlib.contextmanager
def _folder(path: Path) -> Iterator[int]:
    if len(os.fsencode(path.name)) > _LONGEST_NAME:
        raise Failure(f"the name of the socket '{path.name}' is longer than {_LONGEST_NAME} bytes")
    try:
        descriptor = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Failure(f"unable to enter '{path.parent}': {error.strerror}") from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _refuse_other_kinds(path: Path) -> None:
    try:
        kind = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(kind):
        raise Failure(f"'{path}' is in the way of a socket and is none; look what it is and remove it")
