# SPDX-License-Identifier: AGPL-3.0-or-later
"""Folders that are volumes: the file trees of containers, removed without ever following what lies in them.

Whoever is root in a container made these trees: they may be deeper than any recursion, hold millions of files, links
to anywhere, subvolumes, and files that are marked as immutable.
"""

import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Final

from orrery.drivers.storage import subvolumes
from orrery.errors import Failure
from orrery.system import files, process

MODE: Final = 0o755
"""Of a new tree's top, the root folder of a container; the storage's own folders keep the host's users out."""

_LONG: Final = 7 * 86400.0
_AT_ONCE: Final = 200
_MOUNTS: Final = Path("/proc/self/mountinfo")


def remove(path: Path) -> None:
    """Removes a folder with all in it. Raises FileNotFoundError when there is none, Failure when something stays.

    Take it out of its place first (`staging.set_aside`): a removal that is cut off leaves the rest.
    """
    refuse_mounts(path)
    if subvolumes.is_subvolume(path):
        subvolumes.delete(path)
        return
    _remove_all([path])


def empty(tree: Path, keep: Collection[str] = ()) -> None:
    """Removes all that lies in a folder, but for some names at its top. Raises Failure when something stays."""
    try:
        names = sorted(set(os.listdir(tree)) - set(keep))  # noqa: PTH208
    except FileNotFoundError:
        return
    except OSError as error:
        raise files.failure(error, f"unable to empty '{tree}'") from error
    for begin in range(0, len(names), _AT_ONCE):
        _remove_all([tree / name for name in names[begin : begin + _AT_ONCE]])


def _remove_all(paths: Sequence[Path]) -> None:
    command = ["rm", "-rf", "--", *map(str, paths)]
    if process.run(command, timeout=_LONG, check=False).returncode == 0:
        return
    # Root of a privileged container can mark files so that nobody may remove them.
    fixed = [str(path) for path in paths if not path.is_symlink()]
    process.run(["chattr", "-R", "-f", "-i", "-a", "--", *fixed], timeout=_LONG, check=False)
    process.run(command, timeout=_LONG)


def refuse_mounts(path: Path) -> None:
    """Raises Failure when something is mounted in the tree, which would be emptied with it."""
    top = os.fsencode(path.parent.resolve() / path.name)
    try:
        lines = _MOUNTS.read_bytes().splitlines()
    except OSError as error:
        raise files.failure(error, "unable to read the mounts of this host") from error
    for line in lines:
        # proc_pid_mountinfo(5): the fifth field is the mount point, with octal escapes.
        place = line.split(b" ", 5)[4].decode("unicode_escape").encode("latin-1")
        if place == top or place.startswith(top + b"/"):
            raise Failure(f"'{os.fsdecode(place)}' is mounted within a volume that is to be removed; unmount it first")
