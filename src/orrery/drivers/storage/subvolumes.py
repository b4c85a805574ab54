# SPDX-License-Identifier: AGPL-3.0-or-later
"""Subvolumes of btrfs and their limits, by the program `btrfs`.

A limit is that of the subvolume's quota group, in bytes of all that it refers to. Asking for numbers of subvolumes is a
call of the kernel, since lists do it for each one (linux/btrfs.h, `BTRFS_IOC_INO_LOOKUP`).
"""

import fcntl
import os
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from orrery.drivers.storage import untrusted
from orrery.errors import Failure, NoSpace, OrreryError
from orrery.system import process

_INO_LOOKUP: Final = 0xD0009412
_FIRST_FREE: Final = 256
"""The inode number of every subvolume's top, and what to ask for when the tree of a file is wanted."""
_LOOKUP: Final = struct.Struct("=QQ4080x")
_SET_FLAGS: Final = 0x40086602
_NO_COW: Final = 0x00800000
_QUICK: Final = 300.0
_LONG: Final = 86400.0


def identity(path: Path) -> int | None:
    """The number of the subvolume in which a folder lies; None when it does not lie on btrfs. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    answer = bytearray(_LOOKUP.pack(0, _FIRST_FREE))
    try:
        fcntl.ioctl(descriptor, _INO_LOOKUP, answer)
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return int(_LOOKUP.unpack(answer)[0])


def is_subvolume(path: Path) -> bool:
    """Whether a folder is the top of a subvolume. Raises OSError."""
    return path.stat(follow_symlinks=False).st_ino == _FIRST_FREE and identity(path) is not None


def create(path: Path, mode: int) -> None:
    """Makes an empty subvolume. Raises NoSpace or Failure."""
    _btrfs(["subvolume", "create", str(path)])
    path.chmod(mode)


def delete(path: Path) -> None:
    """Removes a subvolume with all in it, also what a container made a subvolume of. Raises Failure."""
    for number in reversed(_nested(path)):
        _btrfs(["subvolume", "delete", "-i", str(number), str(path)])
    group = f"0/{identity(path)}"
    _btrfs(["subvolume", "delete", "-c", str(path)])
    # Newer kernels do it themselves. It stays where its contents are still being removed, which harms nobody.
    process.run(["btrfs", "qgroup", "destroy", group, str(path.parent)], timeout=_QUICK, check=False)


def limit(path: Path, size: int) -> None:
    """Limits a subvolume to `size` bytes; turns the file system's quotas on for that if need be. Raises Failure."""
    command = ["qgroup", "limit", str(size), str(path)]
    try:
        _btrfs(command)
    except Failure:
        _btrfs(["quota", "enable", str(path)])
        _btrfs(["quota", "rescan", "-w", str(path)], _LONG)
        _btrfs(command)


def sizes(path: Path) -> Mapping[int, tuple[int, int]]:
    """Limit (0 for none) and use of every subvolume of a file system, by number; empty while quotas are off."""
    done = process.run(["btrfs", "qgroup", "show", "--raw", "-r", str(path)], timeout=_QUICK, check=False)
    found = {}
    for line in done.text.splitlines() if done.returncode == 0 else []:
        # Group, bytes referred to, bytes of its own, limit of the first; others by newer versions.
        words = line.split()
        level, slash, number = words[0].partition("/") if words else ("", "", "")
        if level == "0" and slash and len(words) >= 4 and words[1].isdigit():
            found[int(number)] = (int(words[3]) if words[3].isdigit() else 0, int(words[1]))
    return found


def avoid_copies(path: Path) -> None:
    """Has an empty file written in place from now on, also without checksums. Raises OSError."""
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.ioctl(descriptor, _SET_FLAGS, struct.pack("=l", _NO_COW))
    finally:
        os.close(descriptor)


def _nested(path: Path) -> list[int]:
    """Numbers of the subvolumes below one, parents before children."""
    top = identity(path)
    parents: dict[int, int] = {}
    for line in process.run(["btrfs", "subvolume", "list", "-p", str(path)], timeout=_QUICK).text.splitlines():
        # ID 257 gen 9 parent 256 top level 256 path a/b
        words = line.split(" ", 7)
        parents[int(words[1])] = int(words[5])
    found: list[int] = []
    above = {top}
    while below := [number for number, parent in parents.items() if parent in above]:
        found += below
        above = set(below)
    return found


def _btrfs(arguments: Sequence[str], timeout: float = _QUICK) -> None:
    done = process.run(["btrfs", *arguments], timeout=timeout, check=False)
    if done.returncode != 0:
        raise _complaint(arguments, done.stderr)


def _complaint(arguments: Sequence[str], stderr: bytes) -> OrreryError:
    lines = [line.strip() for line in stderr.decode("utf-8", "replace").splitlines() if line.strip()]
    text = (lines[-1] if lines else "without a word").removeprefix("ERROR: ")
    if untrusted.is_full(text):
        return NoSpace("no space left on device; free some space and try again")
    return Failure(f"btrfs {' '.join(arguments[:2])} failed: {text}")
