# SPDX-License-Identifier: AGPL-3.0-or-later
"""The tree of one container's volume copied into another volume, by a program that reaches nothing but the two.

Owners, modes, times, links, extended attributes and lists of access rights are kept; device nodes are not.
"""

from pathlib import Path
from typing import Final

from orrery.drivers.storage import untrusted
from orrery.errors import Failure, NoSpace
from orrery.system.jail import Bind, Capability, Jail

_OLD, _NEW = "/old", "/new"
_LONG: Final = 7 * 86400.0
_MAX_ANSWER: Final = 1 << 20
_RIGHTS: Final = frozenset(
    (Capability.CHOWN, Capability.DAC_OVERRIDE, Capability.FOWNER, Capability.FSETID, Capability.SETFCAP)
)


def copy_tree(old: Path, new: Path) -> None:
    """Copies all that lies in the folder `old` into the empty folder `new`. Raises `NoSpace` or `Failure`."""
    jail = Jail(
        *(0, 0),
        user="nobody",
        network=False,
        capabilities=_RIGHTS,
        binds=(Bind(old, _OLD), Bind(new, _NEW, writable=True)),
        tmp_size=0,
        proc=False,
    )
    argv = ["cp", "--archive", "--one-file-system", "--no-target-directory", _OLD, _NEW]
    said = bytearray()
    code, complaints = untrusted.run_jailed(argv, jail, _LONG, said.extend, limit=_MAX_ANSWER)
    if code == 0:
        return
    lines = [line.strip() for line in complaints.decode("utf-8", "replace").splitlines() if line.strip()]
    if any(untrusted.is_full(line) for line in lines):
        raise NoSpace("no space left for the copy; free some space, or move to a larger storage")
    raise Failure(f"the volume could not be copied: {lines[-1] if lines else f'exit code {code}'}")
