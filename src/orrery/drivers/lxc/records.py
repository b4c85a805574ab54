# SPDX-License-Identifier: AGPL-3.0-or-later
"""Which containers run (`orrery.drivers.records`), and which ids of the host each of them has.

An own range is taken when a container starts: noted before, so that two that start at once get different ones, and
free again when the container, or the process that was starting it, is gone. What the kernel knows of other processes'
ids counts too: another program's containers, or those of another root.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

from orrery.drivers import records
from orrery.errors import Failure, OrreryError
from orrery.model import idmap
from orrery.model.idmap import IdMap, IdRange
from orrery.system import cgroup, files, process
from orrery.system.files import FileLock
from orrery.system.paths import Paths
from orrery.system.process import ProcessId

_RESERVATION: Final = "ids.json"
_LOCK_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True)
class ContainerRecord:
    """A container that was started: its monitor, its map of ids (empty: privileged), when (seconds since 1970)."""

    process: ProcessId
    idmap: str
    started: float

    @property
    def ids(self) -> IdMap | None:
        """The map of ids; None for a privileged container."""
        return IdMap.parse(self.idmap) if self.idmap else None

    @property
    def root(self) -> tuple[int, int]:
        """User and group of the host that the container's root is."""
        ids = self.ids
        return (0, 0) if ids is None else (ids.host_id("u", 0) or 0, ids.host_id("g", 0) or 0)


class Records(records.Records[ContainerRecord]):
    """The records of all containers of a root. One whose record is missing is found by its monitor's control group."""

    def __init__(self, paths: Paths) -> None:
        def unrecorded(vmid: int) -> ContainerRecord | None:
            group = cgroup.monitor_group(paths.root_hash, vmid)
            found = [each for each in map(process.identity, group.pids()) if each is not None and process.alive(each)]
            reserved = _reservation(paths.guest_run(vmid))
            return ContainerRecord(min(found), reserved[1] if reserved else "", 0.0) if found else None

        def remove_group(vmid: int) -> None:
            for group in groups(paths, vmid):
                if group.exists():
                    group.kill()
                    group.remove()

        kind = records.Kind("CT", records.CONTAINER_RECORD, _parse, unrecorded, remove_group)
        super().__init__(paths, kind)
        self._paths = paths

    def take_ids(self, vmid: int, wanted: IdMap | Literal["own"]) -> IdMap:
        """Note which ids a container that is about to start will have; its run folder is there already.

        Raises Failure when a running container has some of them (but the shared range is everybody's), or when no range
        is left.
        """
        with FileLock(self._paths.run / "idmap.lock", _LOCK_SECONDS):
            taken = dict(self._taken(but=vmid))
            if wanted == "own":
                slot = idmap.free_slot([*taken.values(), *_ids_in_use()])
                if slot is None:
                    raise Failure("every range of ids for containers of their own is in use")
                wanted = idmap.own(slot)
            elif wanted != idmap.shared():
                for other, ids in taken.items():
                    common = idmap.overlaps(wanted, ids)
                    if common is not None:
                        raise Failure(f"idmap: CT {other}, which runs, has {common} too")
            reservation = {"by": asdict(_ourselves()), "idmap": str(wanted)}
            files.write_json(self._paths.guest_run(vmid) / _RESERVATION, reservation, lasting=False)
        return wanted

    def _taken(self, *, but: int) -> Iterator[tuple[int, IdMap]]:
        """Maps of the containers that run or are being started."""
        for vmid in self._folders():
            reserved = _reservation(self._paths.guest_run(vmid))
            if vmid == but or reserved is None or not reserved[1]:
                continue
            if process.alive(reserved[0]) or self.read(vmid) is not None:
                yield vmid, IdMap.parse(reserved[1])


def groups(paths: Paths, vmid: int) -> tuple[cgroup.Group, cgroup.Group]:
    """The control groups of a container, and of its monitor."""
    return cgroup.container_group(paths.root_hash, vmid), cgroup.monitor_group(paths.root_hash, vmid)


def _parse(found: Any) -> ContainerRecord:
    text = str(found["idmap"])
    if text:
        IdMap.parse(text)
    return ContainerRecord(records.parse_process(found["process"]), text, float(found["started"]))


def _reservation(folder: Path) -> tuple[ProcessId, str] | None:
    try:
        found = files.read_json(folder / _RESERVATION)
        return records.parse_process(found["by"]), str(found["idmap"])
    except (OrreryError, OSError, KeyError, TypeError, ValueError):
        return None


def _ourselves() -> ProcessId:
    return process.identity(os.getpid()) or ProcessId(os.getpid(), 0)


def _ids_in_use() -> Iterable[IdMap]:
    """Ranges above the host's own users that processes have in their user namespaces, as /proc shows them."""
    found: set[tuple[int, int]] = set()
    with os.scandir("/proc") as entries:
        for entry in entries:
            if entry.name.isdecimal():
                with contextlib.suppress(OSError, ValueError):
                    for line in Path(f"/proc/{entry.name}/uid_map").read_text().splitlines():
                        _, host, count = map(int, line.split())
                        if host + count >= idmap.OWN_FIRST and host + count <= idmap.HOST_IDS:
                            found.add((host, count))
    return [IdMap((IdRange("u", 0, host, count), IdRange("g", 0, host, count))) for host, count in sorted(found)]
