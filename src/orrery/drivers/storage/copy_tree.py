# SPDX-License-Identifier: AGPL-3.0-or-later
"""The tree of one container's volume copied into another volume, by programs that reach nothing but the two.

Owners, modes, times, links, holes, whiteouts of overlay file systems, lists of access rights, and of the extended
attributes users' own and capabilities are kept; device nodes, which containers get otherwise, and sockets are not.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

from orrery.drivers.storage import tarpipe
from orrery.drivers.storage.tarstream import TarFilter
from orrery.system.jail import Capability

_TAR: Final = (
    *("tar", "--create", "--file=-", f"--directory={tarpipe.SEEN_TREE}", "--format=pax", "--numeric-owner"),
    *("--sparse", "--one-file-system", *tarpipe.XATTRS, "--anchored", "--exclude=./lost+found", "."),
)


def copy_tree(old: Path, new: Path, *, log: Callable[[str], None] | None = None) -> None:
    """Copies all that lies in the folder `old` into the empty folder `new`. `log` is told what is left out.

    Raises `NoSpace` or `Failure`; then what has been copied is still there.
    """
    jail = replace(tarpipe.jail_with(old, writable=False), capabilities=frozenset({Capability.DAC_OVERRIDE}))
    judge = TarFilter(max_id=None)
    tarpipe.run(tarpipe.Producer(_TAR, jail), new, judge, "the volume could not be copied")
    if log is not None:
        for note in judge.notes:
            log(note)
