# SPDX-License-Identifier: AGPL-3.0-or-later
"""Which guests run: a record per guest in its run folder, verified against the kernel.

The record holds pid and start time, so a guest is found again after the daemon was stopped, killed or replaced, and a
process that got the number of a dead guest is never taken for it. A run folder belongs to the kind of guest whose
record lies in it; one without any record may be anybody's whose starter was killed at that very moment.
"""

import contextlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Generic, Protocol, TypeVar

from orrery.errors import Failure, OrreryError
from orrery.system import files, process
from orrery.system.paths import Paths
from orrery.system.process import ProcessId

MACHINE_RECORD: Final = "process.json"
CONTAINER_RECORD: Final = "container.json"
_ALL: Final = frozenset((MACHINE_RECORD, CONTAINER_RECORD))


class Record(Protocol):
    """What every record holds: the process on which the guest hangs. A dataclass of plain data."""

    @property
    def process(self) -> ProcessId: ...


R = TypeVar("R", bound=Record)


@dataclass(frozen=True)
class Kind(Generic[R]):
    """What is different between kinds of guests.

    `parse` makes a record from what was read (KeyError, TypeError or ValueError when it is none); `unrecorded` looks
    for a guest that has none; `remove_group` removes the guest's control groups.
    """

    title: str
    file: str
    parse: Callable[[Any], R]
    unrecorded: Callable[[int], R | None]
    remove_group: Callable[[int], None]


class Records(Generic[R]):
    """The records of all guests of one kind of a root. Safe for use by several threads."""

    def __init__(self, paths: Paths, kind: Kind[R]) -> None:
        self._paths = paths
        self._kind = kind
        self._cache: dict[int, tuple[int, R]] = {}

    def write(self, vmid: int, record: R) -> None:
        """Note a guest that was started."""
        files.write_json(self._file(vmid), asdict(record), lasting=False)  # type: ignore[call-overload]

    def read(self, vmid: int) -> R | None:
        """The record of a guest whose process is alive, else None."""
        if not self._paths.guest_run(vmid).is_dir() or self._foreign(vmid):
            return None
        record = self._read(vmid) or self._kind.unrecorded(vmid)
        return record if record is not None and process.alive(record.process) else None

    def running(self) -> dict[int, R]:
        """All guests that are alive."""
        found = ((vmid, self.read(vmid)) for vmid in self._folders())
        return {vmid: record for vmid, record in found if record is not None}

    def ended(self) -> list[int]:
        """Guests that have a run folder and are not alive."""
        return [vmid for vmid in self._folders() if self.read(vmid) is None]

    def _folders(self) -> list[int]:
        try:
            names = [folder.name for folder in self._paths.guests_run.iterdir()]
        except FileNotFoundError:
            return []
        found = sorted(int(name) for name in names if name.isdecimal())
        return [vmid for vmid in found if not self._foreign(vmid)]

    def _foreign(self, vmid: int) -> bool:
        folder = self._paths.guest_run(vmid)
        if (folder / self._kind.file).exists():
            return False
        return any((folder / name).exists() for name in _ALL)

    def forget(self, vmid: int) -> None:
        """Remove what a guest that has ended left in the run folder, and its control group.

        Raises Failure when it still runs.
        """
        if self.read(vmid) is not None:
            raise Failure(f"{self._kind.title} {vmid} is running")
        self._cache.pop(vmid, None)
        if self._foreign(vmid):
            return
        with contextlib.suppress(FileNotFoundError):
            files.remove_tree(self._paths.guests_run, str(vmid))
        self._kind.remove_group(vmid)

    def _read(self, vmid: int) -> R | None:
        path = self._file(vmid)
        try:
            changed = path.stat().st_mtime_ns
        except OSError:
            self._cache.pop(vmid, None)
            return None
        cached = self._cache.get(vmid)
        if cached is not None and cached[0] == changed:
            return cached[1]
        try:
            record = self._kind.parse(files.read_json(path))
        except (OrreryError, OSError, KeyError, TypeError, ValueError):
            return None
        self._cache[vmid] = (changed, record)
        return record

    def _file(self, vmid: int) -> Path:
        return self._paths.guest_run(vmid) / self._kind.file


def parse_process(found: Any) -> ProcessId:
    """A process as `asdict` wrote it. Raises KeyError, TypeError, ValueError."""
    return ProcessId(int(found["pid"]), int(found["start"]))
