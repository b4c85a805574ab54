# SPDX-License-Identifier: AGPL-3.0-or-later
"""A container's file tree, read and written as what it is: somebody else's.

Whoever is root in a container decides where its symbolic links point, which of its files are really pipes, and may
change both while we look. So every path is resolved by the kernel with the tree as its root (openat2(2) with
RESOLVE_IN_ROOT and RESOLVE_NO_MAGICLINKS): an absolute link or `..` ends at the tree's own top. What is opened is first
held without being opened (O_PATH) and looked at, so no pipe blocks us and no device is touched; what is written is a
new file that takes the old one's name inside a folder that is held open.

Ids are those on disk. Raises `Failure`, `NotFound` or `NoSpace` with the path as the container sees it.
"""

import contextlib
import ctypes
import errno
import os
import secrets
import shutil
import stat
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from orrery.errors import Failure, NotFound, OrreryError
from orrery.system import files

READ_LIMIT: Final = 1 << 20
"""Bytes; configuration files are far smaller."""
LIST_LIMIT: Final = 10_000
_LINKS: Final = 40  # as many as the kernel follows in one path
_RETRIES: Final = 64

# include/uapi/linux/openat2.h; the call has one number on every architecture but alpha.
_SYS_OPENAT2: Final = 437
_RESOLVE_NO_MAGICLINKS, _RESOLVE_IN_ROOT = 0x02, 0x10

_O_PATH: Final = os.O_PATH | os.O_CLOEXEC
_O_FOLDER: Final = _O_PATH | os.O_DIRECTORY
_LIBC = ctypes.CDLL(None, use_errno=True)

_KINDS: Final = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISLNK, "a symbolic link"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def _openat2(folder: int, path: bytes, flags: int) -> int:
    """A descriptor of `path` below `folder` as its root. Raises OSError.

    The kernel answers EAGAIN when something was renamed while it went through a `..`: ask again, but not for ever.
    """
    how = struct.pack("=QQQ", flags, 0, _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS)
    code = errno.EAGAIN
    for _ in range(_RETRIES):
        number = _LIBC.syscall(
            *(ctypes.c_long(_SYS_OPENAT2), ctypes.c_long(folder), ctypes.c_char_p(path), how, ctypes.c_long(len(how)))
        )
        if number >= 0:
            return int(number)
        code = ctypes.get_errno()
        if code not in (errno.EAGAIN, errno.EINTR):
            break
    raise OSError(code, os.strerror(code))


class Tree:
    """The tree below a folder of the host, or below an open descriptor of one (then a copy of it is taken).

    Use as a context manager, or call `close`. Paths are as inside: `/etc/hosts` and `etc/hosts` are the same.
    """

    def __init__(self, root: Path | int) -> None:
        try:
            if isinstance(root, int):
                self._root = os.open(".", _O_FOLDER, dir_fd=root)
            else:
                self._root = os.open(root, _O_FOLDER)
        except OSError as error:
            raise files.failure(error, "unable to open the container's file tree") from error

    def close(self) -> None:
        """Let go of the tree; more than once is fine."""
        if self._root >= 0:
            os.close(self._root)
            self._root = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- looking

    def exists(self, path: str) -> bool:
        """Whether something is there; a link that leads nowhere inside is not."""
        return self._mode(path) is not None

    def is_dir(self, path: str) -> bool:
        """Whether it is a folder, or a link to one inside."""
        mode = self._mode(path)
        return mode is not None and stat.S_ISDIR(mode)

    def is_file(self, path: str) -> bool:
        """Whether it is a regular file, or a link to one inside."""
        mode = self._mode(path)
        return mode is not None and stat.S_ISREG(mode)

    def stat(self, path: str) -> os.stat_result:
        """Owner, mode and size of what the path leads to."""
        with self._held(path, _O_PATH) as descriptor:
            return os.fstat(descriptor)

    def readlink(self, path: str) -> str | None:
        """Where the link itself points, as it says; None when it is no link or not there."""
        try:
            with self._place(path) as (folder, name):
                return _link(folder, name)
        except NotFound:
            return None

    def list(self, path: str) -> list[str]:
        """Names in a folder, sorted; of one with very many, `LIST_LIMIT` of them."""
        with (
            self._held(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC) as descriptor,
            os.scandir(descriptor) as all_,
        ):
            names = [entry.name for _, entry in zip(range(LIST_LIMIT), all_, strict=False)]
        return sorted(names)

    def read(self, path: str, limit: int = READ_LIMIT) -> bytes:
        """The content of a regular file of at most `limit` bytes."""
        with self._held(path, _O_PATH) as held:
            _must_be_regular(path, os.fstat(held))
            descriptor = os.open(f"/proc/self/fd/{held}", os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as handle:
            data = handle.read(limit + 1)
        if len(data) > limit:
            raise Failure(f"'{path}' in the container is larger than {limit} bytes")
        return data

    # --- changing

    def write(
        self,
        path: str,
        data: bytes,
        *,
        mode: int | None = None,
        owner: tuple[int, int] | None = None,
        follow: bool = True,
    ) -> bool:
        """Put a file in the place of `path` in one step; says whether anything changed.

        `mode` and `owner` (uid, gid) are those of the file that is there unless given; of a new one 0644 and root. A
        link is followed inside the tree, or replaced where `follow` is false. The folder must exist.
        """
        with self._place(path, follow=follow) as (folder, name):
            there = _lstat(folder, name)
            if there is not None and stat.S_ISLNK(there.st_mode):
                there = None  # to be replaced: its owner and mode say nothing
            if there is not None:
                _must_be_regular(path, there)
            wanted = mode if mode is not None else (there.st_mode & 0o777 if there else 0o644)
            uid, gid = owner or ((there.st_uid, there.st_gid) if there else (0, 0))
            same = there is not None and (there.st_mode & 0o7777, there.st_uid, there.st_gid) == (wanted, uid, gid)
            if same and there is not None and there.st_size == len(data) and _content(folder, name, len(data)) == data:
                return False
            _replace(folder, name, lambda new: _new_file(folder, new, data, wanted, (uid, gid)))
            return True

    def symlink(self, path: str, target: str) -> bool:
        """Make `path` a link to `target`, in the place of a file or link; says whether anything changed."""
        with self._place(path) as (folder, name):
            there = _lstat(folder, name)
            if there is not None and stat.S_ISDIR(there.st_mode):
                raise Failure(f"'{path}' in the container is a folder, where a link belongs")
            if _link(folder, name) == target:
                return False
            _replace(folder, name, lambda new: os.symlink(target, new, dir_fd=folder))
            return True

    def mkdir(self, path: str, mode: int = 0o755, owner: tuple[int, int] = (0, 0)) -> bool:
        """Make a folder and those above it that are missing; says whether any was made. One that exists stays."""
        made = False
        parts = _parts(path)
        for count in range(1, len(parts) + 1):
            part = "/" + "/".join(parts[:count])
            if not self.is_dir(part):
                with self._place(part, follow=True) as (folder, name):
                    os.mkdir(name, 0o700, dir_fd=folder)
                    with contextlib.closing(_Descriptor(name, _O_FOLDER | os.O_NOFOLLOW, folder)) as new:
                        _own(new.number, owner, mode if count == len(parts) else 0o755)
                made = True
        return made

    def chown(self, path: str, uid: int, gid: int) -> None:
        """Give what the path leads to, inside, to these ids."""
        with self._held(path, _O_PATH) as descriptor:
            os.chown(f"/proc/self/fd/{descriptor}", uid, gid)

    def chmod(self, path: str, mode: int) -> None:
        """Set the mode of the file or folder that the path leads to, inside."""
        with self._held(path, _O_PATH) as descriptor:
            os.chmod(f"/proc/self/fd/{descriptor}", mode)  # noqa: PTH101

    def remove(self, path: str, *, recursive: bool = False) -> bool:
        """Remove a file or a link itself, with `recursive` also a folder and all in it; says whether it was there."""
        try:
            with self._place(path) as (folder, name):
                there = _lstat(folder, name)
                if there is None:
                    return False
                if not stat.S_ISDIR(there.st_mode):
                    os.unlink(name, dir_fd=folder)
                elif recursive:
                    shutil.rmtree(name, dir_fd=folder)
                else:
                    raise Failure(f"'{path}' in the container is a folder")
        except NotFound:
            return False
        return True

    # --- how

    def _mode(self, path: str) -> int | None:
        try:
            return self.stat(path).st_mode
        except (NotFound, Failure):
            return None

    @contextlib.contextmanager
    def _held(self, path: str, flags: int) -> Iterator[int]:
        """An open descriptor of what `path` leads to; errors within the block are told with the path."""
        with _told(path), contextlib.closing(_Descriptor(_encoded(path), flags, self._root, openat2=True)) as held:
            yield held.number

    @contextlib.contextmanager
    def _place(self, path: str, *, follow: bool = False) -> Iterator[tuple[int, str]]:
        """The open folder of `path`'s last part, and that part; `follow` goes where links at the last part lead.

        The kernel resolves each folder anew from the top, so a link that is changed meanwhile leads elsewhere inside.
        """
        with _told(path):
            _encoded(path)
        where = path
        for _ in range(_LINKS):
            parts = _parts(where)
            # A name with a slash would make the kernel forget the folder that is held: it must be one part alone.
            if not parts or parts[-1] == ".." or "/" in parts[-1]:
                raise Failure(f"'{path}' in the container is no place for a file")
            above = "/".join(parts[:-1])
            with (
                _told(path),
                contextlib.closing(_Descriptor(above or "/", _O_FOLDER, self._root, openat2=True)) as held,
            ):
                target = _link(held.number, parts[-1]) if follow else None
                if target is None:
                    yield held.number, parts[-1]
                    return
            where = target if target.startswith("/") else f"{above}/{target}"
        raise Failure(f"'{path}' in the container: {os.strerror(errno.ELOOP)}")


class _Descriptor:
    """An open descriptor for `contextlib.closing`."""

    def __init__(self, path: bytes | str, flags: int, folder: int, *, openat2: bool = False) -> None:
        if openat2:
            self.number = _openat2(folder, os.fsencode(path), flags | os.O_NONBLOCK if not flags & os.O_PATH else flags)
        else:
            self.number = os.open(path, flags, dir_fd=folder)

    def close(self) -> None:
        os.close(self.number)


@contextlib.contextmanager
def _told(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _failure(error, path) from error


def _failure(error: OSError, path: str) -> OrreryError:
    return files.failure(error, f"'{path}' in the container")


def _parts(path: str) -> list[str]:
    # Not by pathlib: to it `//` is a root of its own, and taken for a name it would be the host's.
    return [part for part in path.split("/") if part not in ("", ".")]


def _encoded(path: str) -> bytes:
    try:
        encoded = os.fsencode(path)
    except UnicodeEncodeError:
        encoded = b"\0"
    if b"\0" in encoded:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    return encoded or b"/"


def _lstat(folder: int, name: str) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _link(folder: int, name: str) -> str | None:
    try:
        return os.readlink(name, dir_fd=folder)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.EINVAL:  # there, and no link
            return None
        raise


def _must_be_regular(path: str, state: os.stat_result) -> None:
    if not stat.S_ISREG(state.st_mode):
        kind = next((words for test, words in _KINDS if test(state.st_mode)), "no regular file")
        raise Failure(f"'{path}' in the container is {kind}, where a file belongs")


def _content(folder: int, name: str, size: int) -> bytes | None:
    """The first `size` bytes of a regular file, None when it is none any more."""
    with contextlib.closing(_Descriptor(name, _O_PATH | os.O_NOFOLLOW, folder)) as held:
        if not stat.S_ISREG(os.fstat(held.number).st_mode):
            return None
        descriptor = os.open(f"/proc/self/fd/{held.number}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as handle:
        return handle.read(size + 1)


def _replace(folder: int, name: str, make: Callable[[str], None]) -> None:
    """Let `make` create something under a name that is free, and give it the name wanted."""
    new = f".{name[:40]}.{secrets.token_hex(6)}.new"
    try:
        make(new)
        os.rename(new, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(new, dir_fd=folder)
        raise


def _new_file(folder: int, name: str, data: bytes, mode: int, owner: tuple[int, int]) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(name, flags, 0o600, dir_fd=folder)
    with os.fdopen(descriptor, "wb") as handle:
        handle.write(data)
        handle.flush()
        os.fchown(descriptor, *owner)  # before the mode: a change of owner takes set-id bits away
        os.fchmod(descriptor, mode)
        os.fsync(descriptor)


def _own(descriptor: int, owner: tuple[int, int], mode: int) -> None:
    """Owner and mode of what is held, however the process' mask is."""
    os.chown(f"/proc/self/fd/{descriptor}", *owner)
    os.chmod(f"/proc/self/fd/{descriptor}", mode)  # noqa: PTH101
