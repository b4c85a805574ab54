# SPDX-License-Identifier: AGPL-3.0-or-later
"""Which machines run: a record per machine in its run folder, verified against the kernel.

The record `process.json` holds pid and start time, so a machine is found again after the daemon was stopped, killed or
replaced, and a process that got the number of a dead machine is never taken for it.
"""

import contextlib
import hashlib
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from orrery.errors import Failure, OrreryError
from orrery.system import cgroup, files, process
from orrery.system.paths import Paths
from orrery.system.process import ProcessId

_FILE: Final = "process.json"

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


class Records:
    """The records of all machines of a root. Safe for use by several threads.

    A machine whose record is missing or damaged (its starter was killed at that very moment) is found by its user.
    """

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._cache: dict[int, tuple[int, MachineRecord]] = {}

    def write(self, vmid: int, record: MachineRecord) -> None:
        """Note a machine that was started."""
        files.write_json(self._file(vmid), asdict(record))

    def read(self, vmid: int) -> MachineRecord | None:
        """The record of a machine whose process is alive, else None."""
        if not self._paths.guest_run(vmid).is_dir():
            return None
        record = self._read(vmid) or self._unrecorded(vmid)
        return record if record is not None and process.alive(record.process) else None

    def running(self) -> dict[int, MachineRecord]:
        """All machines that are alive."""
        found = ((vmid, self.read(vmid)) for vmid in self._folders())
        return {vmid: record for vmid, record in found if record is not None}

    def ended(self) -> list[int]:
        """Machines that have a run folder and are not alive."""
        return [vmid for vmid in self._folders() if self.read(vmid) is None]

    def _folders(self) -> list[int]:
        try:
            names = [folder.name for folder in self._paths.guests_run.iterdir()]
        except FileNotFoundError:
            return []
        return sorted(int(name) for name in names if name.isdecimal())

    def forget(self, vmid: int) -> None:
        """Remove what a machine that has ended left in the run folder, and its control group.

        Raises Failure when it still runs.
        """
        if self.read(vmid) is not None:
            raise Failure(f"VM {vmid} is running")
        self._cache.pop(vmid, None)
        with contextlib.suppress(FileNotFoundError):
            files.remove_tree(self._paths.guests_run, str(vmid))
        group = cgroup.guest_group(self._paths.root_hash, vmid)
        if group.exists():
            group.remove()

    def _read(self, vmid: int) -> MachineRecord | None:
        path = self._file(vmid)
        try:
            changed = path.stat().st_mtime_ns
        except OSError:
            self._cache.pop(vmid, None)
            return None
        cached = self._cache.get(vmid)
        if cached is not None and cached[0] == changed:
            return cached[1]
        record = _parse(path)
        if record is not None:
            self._cache[vmid] = (changed, record)
        return record

    def _unrecorded(self, vmid: int) -> MachineRecord | None:
        processes = strays(guest_uid(self._paths, vmid))
        return MachineRecord(min(processes), "", "", "", 0.0) if processes else None

    def _file(self, vmid: int) -> Path:
        return self._paths.guest_run(vmid) / _FILE


def _parse(path: Path) -> MachineRecord | None:
    try:
        found = files.read_json(path)
        return MachineRecord(
            ProcessId(int(found["process"]["pid"]), int(found["process"]["start"])),
            str(found["machine"]),
            str(found["version"]),
            str(found["accelerator"]),
            float(found["started"]),
        )
    except (OrreryError, OSError, KeyError, TypeError, ValueError):
        return None
