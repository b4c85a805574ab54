# SPDX-License-Identifier: AGPL-3.0-or-later
"""Files that survive a crash, and paths that do not leave their root.

Whatever is replaced is written beside its place, flushed, renamed over it, and the folder is flushed too: after a power
cut either the old or the new content is there, whole.
"""

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, Final, Self

from orrery.errors import Corrupt, Failure, Locked, NoSpace, NotFound, OrreryError, ParameterError

_POLL_SECONDS: Final = 0.02  # flock has no timeout of its own
_OUT_OF_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


def failure(error: OSError, what: str) -> OrreryError:
    """The error of the tree for a failed file operation: NoSpace, NotFound or Failure; `what` is a clause of it."""
    text = f"{what}: {error.strerror or error}"
    if error.errno in _OUT_OF_SPACE:
        return NoSpace(f"{text}; free some space and try again")
    if error.errno == errno.ENOENT:
        return NotFound(text)
    return Failure(text)


def takes_direct(path: Path) -> bool:
    """Whether a file can be opened past the page cache (O_DIRECT); before kernel 6.6 none on a tmpfs can, for one."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC))
    except OSError as error:
        return error.errno != errno.EINVAL
    return True


# --- writing


def sync_dir(folder: Path) -> None:
    """Flush a folder's entries to the disk, so that a rename in it survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: Path, data: bytes, mode: int = 0o600, *, lasting: bool = True) -> None:
    """Replace `path` by `data` in one step. The temporary file beside it never has wider rights than `mode`.

    What need not be `lasting` may be lost in a power cut, as is all that it describes: it does not wait for the disk.
    Raises NoSpace or Failure; then the old content is untouched and nothing is left behind.
    """
    temporary = path.with_name(f".{path.name[:200]}.{secrets.token_hex(4)}.new")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            _write_all(descriptor, data)
            os.fchmod(descriptor, mode)
            if lasting:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.replace(path)
        if lasting:
            sync_dir(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise failure(error, f"unable to write '{path}'") from error


def _write_all(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def write_json(path: Path, value: Any, mode: int = 0o600, *, lasting: bool = True) -> None:
    """Replace `path` by `value` as JSON, readable for people. Raises as `write_atomic` does."""
    write_atomic(path, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode(), mode, lasting=lasting)


def read_json(path: Path) -> Any:
    """The JSON value in `path`.

    Raises FileNotFoundError when it is absent (often no mistake), Corrupt when it is not JSON, Failure otherwise.
    """
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise
    except OSError as error:
        raise failure(error, f"unable to read '{path}'") from error
    except ValueError as error:
        raise Corrupt(
            f"the state file '{path}' is damaged ({error}); restore it from a backup, or move it away if you know "
            "that what it describes is gone"
        ) from error


def allocate(descriptor: int, size: int) -> None:
    """Reserve `size` bytes for a file, so that later writes cannot run out of space.

    File systems that cannot reserve get a sparse file of that length. Raises NoSpace or Failure; then the file has its
    old length again. Asks for the free space first: a reservation that must fail would eat all of it for a while.
    """
    state = os.fstat(descriptor)
    system = os.fstatvfs(descriptor)
    missing = size - state.st_blocks * 512
    free = system.f_bavail * system.f_frsize
    if missing > free:
        raise NoSpace(f"unable to reserve {size} bytes: only {free} are free")
    try:
        _fallocate(descriptor, size)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, state.st_size)
        raise failure(error, f"unable to reserve {size} bytes") from error


def _fallocate(descriptor: int, size: int) -> None:
    # The call of the kernel, not posix_fallocate: that one writes every block where the file system cannot reserve.
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.fallocate(descriptor, 0, ctypes.c_int64(0), ctypes.c_int64(size)) == 0:
        return
    code = ctypes.get_errno()
    if code not in (errno.EOPNOTSUPP, errno.ENOSYS):
        raise OSError(code, os.strerror(code))
    if os.fstat(descriptor).st_size < size:
        os.ftruncate(descriptor, size)


# --- paths


def inside(root: Path, relative: str | PurePosixPath) -> Path:
    """The path `relative` below `root`, proved not to leave it: no absolute path, no `..`, no symbolic link out.

    The last part need not exist. Raises ParameterError (parameter `path`): such a name comes from outside.
    """
    text = str(relative)
    parts = PurePosixPath(text).parts
    if not parts or text.startswith("/") or "\0" in text or ".." in parts:
        raise ParameterError({"path": f"'{text}' is not a path below the folder that it belongs to"})
    top = root.resolve()
    path = top.joinpath(*parts)
    if not path.resolve().is_relative_to(top):
        raise ParameterError({"path": f"'{text}' leads out of the folder that it belongs to"})
    return path


def remove_tree(root: Path, relative: str | PurePosixPath) -> None:
    """Remove a file or folder with all in it; absent is fine. Symbolic links are removed, never followed.

    Raises ParameterError when the path leaves `root` or is `root` itself, Failure when something stays.
    """
    parts = PurePosixPath(str(relative)).parts
    folder = inside(root, PurePosixPath(*parts[:-1])) if len(parts) > 1 else root.resolve()
    if not parts or parts[-1] in ("..", "/") or "\0" in parts[-1]:
        raise ParameterError({"path": f"'{relative}' is not a path below the folder that it belongs to"})
    path = folder / parts[-1]
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        if folder.is_dir():
            sync_dir(folder)
    except FileNotFoundError:
        return
    except OSError as error:
        raise failure(error, f"unable to remove '{path}'") from error


# --- space


@dataclass(frozen=True, slots=True)
class Space:
    """Bytes of the file system that a path lies on; `available` is what may still be written."""

    total: int
    used: int
    available: int


def space(path: Path) -> Space:
    """Size and use of the file system of `path`. Raises NotFound or Failure."""
    try:
        state = os.statvfs(path)
    except OSError as error:
        raise failure(error, f"unable to ask for the free space of '{path}'") from error
    return Space(
        state.f_blocks * state.f_frsize,
        (state.f_blocks - state.f_bfree) * state.f_frsize,
        state.f_bavail * state.f_frsize,
    )


def require_space(path: Path, size: int) -> None:
    """Raise NoSpace unless `size` bytes can be written to the file system of `path`."""
    free = space(path).available
    if free < size:
        raise NoSpace(f"not enough space in '{path}': {size} bytes are needed, {free} are free")


# --- locks


class FileLock:
    """A lock between processes and threads, held on an open file: whoever dies loses it.

    Use as a context manager. The file carries the owner's pid for people who look; it is never removed (removing it
    would let two owners hold two files of the same name). `timeout` is in seconds, 0 means try once.
    """

    def __init__(self, path: Path, timeout: float = 10.0) -> None:
        self.path = path
        self.timeout = timeout
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Take the lock. Raises Locked with the owner's pid after the timeout, Failure when there can be no file."""
        if self._descriptor is not None:
            raise Failure(f"the lock '{self.path}' is already held by this object")
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise failure(error, f"unable to open the lock file '{self.path}'") from error
        try:
            self._wait(descriptor)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor

    def _wait(self, descriptor: int) -> None:
        end = time.monotonic() + self.timeout
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= end:
                    owner = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
                    raise Locked(f"can't lock file '{self.path}' - got timeout (held by process {owner})") from None
                time.sleep(_POLL_SECONDS)
            else:
                return

    def release(self) -> None:
        """Give the lock back; a lock that is not held is left alone."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    @property
    def descriptor(self) -> int | None:
        """The open file while the lock is held: a child that inherits it holds the lock too."""
        return self._descriptor

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


@contextlib.contextmanager
def partial(path: Path, mode: int = 0o600) -> Iterator[int]:
    """A descriptor of a new file that takes the name `path` only when the block ends well.

    For contents too large for memory. On an exception nothing is left behind. An existing `path` is replaced.
    """
    temporary = path.with_name(f".{path.name[:200]}.{secrets.token_hex(4)}.new")
    try:
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise failure(error, f"unable to write '{path}'") from error
    try:
        try:
            yield descriptor
            os.fchmod(descriptor, mode)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.replace(path)
        sync_dir(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise failure(error, f"unable to write '{path}'") from error
        raise


def is_private(path: Path) -> bool:
    """Whether only the owner may read the file, and the owner is who we are."""
    state = path.stat()
    return state.st_uid == os.geteuid() and not stat.S_IMODE(state.st_mode) & 0o077
