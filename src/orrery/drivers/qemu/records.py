# SPDX-License-Identifier: AGPL-3.0-or-later
"""Which machines run (`orrery.drivers.records`), and which user each runs as."""

import contextlib
import hashlib
import os
from dataclasses import dataclass
from typing import Any, Final

from orrery.drivers import records
from orrery.system import cgroup, process
from orrery.system.paths import Paths
from orrery.system.process import ProcessId

_UIDS: Final = 1_000_000_000
_FIRST_UID: Final = 2_200_000_000
"""Above every range that systems give to users and containers (and above 2^31, which some tools show as negative)."""


def guest_uid(paths: Paths, vmid: int) -> int:
    """The user, and group, that a machine runs as: no other machine of this root has it.

    Roots on one machine start at different places of the range, so that equal numbers do not mean equal users.
    """
    offset = int(hashlib.sha256(paths.root_digest.encode()).hexdigest()[:15], 16)
    return _FIRST_UID + (offset + vmid) % _UIDS


@dataclass(frozen=True, slots=True)
class MachineRecord:
    """A machine that was started: its process, what it is, and when it was started (seconds since 1970)."""

    process: ProcessId
    machine: str
    version: str
    accelerator: str
    started: float


def strays(uid: int) -> list[ProcessId]:
    """Live processes of a machine's own user, wherever they came from: looks at every process there is."""
    found: list[ProcessId] = []
    with os.scandir("/proc") as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                if entry.name.isdecimal() and entry.stat().st_uid == uid:
                    each = process.identity(int(entry.name))
                    if each is not None and process.alive(each):
                        found.append(each)
    return found


class Records(records.Records[MachineRecord]):
    """The records of all machines of a root.

    A machine whose record is missing or damaged (its starter was killed at that very moment) is found by its user.
    """

    def __init__(self, paths: Paths) -> None:
        def unrecorded(vmid: int) -> MachineRecord | None:
            processes = strays(guest_uid(paths, vmid))
            return MachineRecord(min(processes), "", "", "", 0.0) if processes else None

        def remove_group(vmid: int) -> None:
            group = cgroup.guest_group(paths.root_hash, vmid)
            if group.exists():
                group.remove()

        super().__init__(paths, records.Kind("VM", records.MACHINE_RECORD, _parse, unrecorded, remove_group))


def _parse(found: Any) -> MachineRecord:
    return MachineRecord(
        records.parse_process(found["process"]),
        str(found["machine"]),
        str(found["version"]),
        str(found["accelerator"]),
        float(found["started"]),
    )
