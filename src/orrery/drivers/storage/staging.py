# SPDX-License-Identifier: AGPL-3.0-or-later
"""Files that grow beside their place and get their name in one step, when they are whole.

A staged file's (or folder's) name tells who works on it: `.staging.NODE.TOKEN.PID.START`. When that process is dead,
the file is a leftover and `sweep` removes it. Only files of the own node are judged: on a storage that several nodes
mount, another node's process ids say nothing here.
"""

import contextlib
import ctypes
import errno
import os
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from orrery.drivers.storage import trees
from orrery.errors import AlreadyExists, Failure, NotFound
from orrery.system import files, process

PREFIX: Final = ".staging."
_NAME = re.compile(r"\.staging\.(?P<node>[A-Za-z0-9-]+)\.(?P<token>[0-9a-f]{16})\.(?P<pid>[0-9]+)\.(?P<start>[0-9]+)")
_AT_FDCWD: Final = -100
_RENAME_NOREPLACE: Final = 1


@dataclass(frozen=True, slots=True)
class StagedName:
    """The parts of a staged file's name; `token` stays the same when the file changes hands."""

    node: str
    token: str
    owner: process.ProcessId

    @classmethod
    def parse(cls, name: str) -> "StagedName | None":
        """The parts, or None when `name` is no staged file's."""
        match = _NAME.fullmatch(name)
        if match is None:
            return None
        return cls(match["node"], match["token"], process.ProcessId(int(match["pid"]), int(match["start"])))

    def __str__(self) -> str:
        return f"{PREFIX}{self.node}.{self.token}.{self.owner.pid}.{self.owner.start}"


def _owned(node: str, token: str) -> str:
    return str(StagedName(node, token, process.identity(os.getpid()) or process.ProcessId(os.getpid(), 0)))


def create(folder: Path, node: str) -> Path:
    """A new empty file in `folder`, 0600, that belongs to this process. Raises NoSpace or Failure."""
    path = new_path(folder, node)
    create_file(path)
    return path


def create_file(path: Path) -> None:
    """Makes an empty file, 0600. Raises NoSpace or Failure."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise files.failure(error, f"unable to write to '{path.parent}'") from error


def create_folder(path: Path, mode: int) -> None:
    """Makes an empty folder. Raises NoSpace or Failure."""
    try:
        path.mkdir(mode=0o700)
        path.chmod(mode)
    except OSError as error:
        raise files.failure(error, f"unable to write to '{path.parent}'") from error


def new_path(folder: Path, node: str) -> Path:
    """A path in `folder` for something that this process is about to make."""
    return folder / _owned(node, secrets.token_hex(8))


def set_aside(path: Path, folder: Path, node: str) -> Path:
    """Takes something out of its place in one durable step, so that its removal may take its time; its new path.

    `folder` lies on the same file system. What a crash leaves of it is swept. Raises NotFound or Failure.
    """
    aside = new_path(folder, node)
    try:
        path.rename(aside)
        for changed in {path.parent, folder}:
            files.sync_dir(changed)
    except OSError as error:
        raise files.failure(error, f"unable to remove '{path.name}'") from error
    return aside


def adopt(staged: Path) -> Path:
    """Makes this process the owner of a staged file (a task takes over what an upload left); its new path.

    Raises NotFound when the file is gone.
    """
    name = _parse(staged)
    path = staged.with_name(_owned(name.node, name.token))
    try:
        staged.rename(path)
    except OSError as error:
        raise files.failure(error, f"unable to take over the staged file '{staged.name}'") from error
    return path


def discard(staged: Path) -> None:
    """Removes a staged file, whoever owns it by now; absent is fine."""
    token = _parse(staged).token
    for path in staged.parent.glob(f"{PREFIX}*.{token}.*"):
        with contextlib.suppress(FileNotFoundError, NotFound):
            _remove(path)


def sweep(folder: Path, node: str) -> int:
    """Removes staged files and folders of this node whose process is dead; how many."""
    removed = 0
    for path in _staged(folder):
        name = StagedName.parse(path.name)
        if name is not None and name.node == node and not process.alive(name.owner):
            with contextlib.suppress(FileNotFoundError, NotFound):
                _remove(path)
                removed += 1
    return removed


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        # A large tree takes its time: whoever looks meanwhile shall see that somebody is at it.
        trees.remove(adopt(path))
    else:
        path.unlink()


def place(staged: Path, target: Path, *, replace: bool = False) -> None:
    """Gives a staged file its name, durably: contents are flushed before, folders after.

    Raises AlreadyExists when the name is taken and `replace` is not set; two callers never both succeed.
    """
    try:
        flush(staged)
        if replace:
            staged.replace(target)
        else:
            _rename_new(staged, target)
        for folder in {target.parent, staged.parent}:
            # Gone again already when somebody removed the new file and its folder.
            with contextlib.suppress(FileNotFoundError):
                files.sync_dir(folder)
    except FileExistsError as error:
        raise AlreadyExists(f"file '{target.name}' already exists") from error
    except OSError as error:
        if error.errno == errno.EXDEV:
            raise Failure(f"'{target.parent}' lies on another file system than '{staged.parent}'") from error
        raise files.failure(error, f"unable to publish '{target.name}'") from error


def flush(path: Path) -> None:
    """Has the contents of a file, or the names in a folder, on the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _parse(staged: Path) -> StagedName:
    name = StagedName.parse(staged.name)
    if name is None:
        raise Failure(f"'{staged.name}' is not a staged file")
    return name


def _staged(folder: Path) -> Iterator[Path]:
    try:
        with os.scandir(folder) as entries:
            yield from [folder / entry.name for entry in entries if entry.name.startswith(PREFIX)]
    except FileNotFoundError:
        return


def _rename_new(source: Path, target: Path) -> None:
    """Renames without ever replacing. renameat2 where the file system has it, else a hard link."""
    libc = ctypes.CDLL(None, use_errno=True)
    arguments = (_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), _RENAME_NOREPLACE)
    if libc.renameat2(*arguments) == 0:
        return
    code = ctypes.get_errno()
    if code not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
        raise OSError(code, os.strerror(code), str(target))
    if source.is_dir():
        target.mkdir()  # takes the name: a folder may be renamed over an empty one
        source.rename(target)
        return
    os.link(source, target, follow_symlinks=False)
    source.unlink()
