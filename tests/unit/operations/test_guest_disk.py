# SPDX-License-Identifier: AGPL-3.0-or-later
"""New volumes of machines: how fast they are copied, and what becomes of a name that somebody else took first."""

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orrery.errors import AlreadyExists
from orrery.model.guest import GuestConfig, GuestRecord
from orrery.operations.drives import make_drive, parse_drive
from orrery.operations.guest_disk import MoveDisk
from orrery.store.guests import add_guest
from orrery.store.memory import MemoryStore

OLD, NEW = "local:100/vm-100-disk-0.raw", "100/vm-100-disk-1.qcow2"


@dataclass
class Task:
    """A task that keeps its undo records."""

    records: dict[int, str] = field(default_factory=dict)

    def before(self, undo: str, /, **arguments: Any) -> int:
        self.records[len(self.records)] = undo
        return len(self.records) - 1

    def kept(self, record: int) -> None:
        del self.records[record]

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments, **more: None


@dataclass
class Storage:
    """A storage on which all names are free, or the next one was taken just now."""

    taken: bool = False
    rates: list[int | None] = field(default_factory=list)
    contents: frozenset[str] = frozenset({"images"})
    formats: tuple[str, ...] = ("qcow2", "raw")

    def next_name(self, vmid: int, image_format: str) -> str:
        return NEW

    def info(self, name: str) -> Any:
        return SimpleNamespace(format="raw", size=1 << 30, content="images", vmid=100)

    def path(self, name: str) -> Path:
        return Path("/nowhere") / name

    def allocate(self, name: str, size: int) -> None:
        if self.taken:
            raise AlreadyExists(f"volume 'local:{name}' already exists")

    def copy_in(self, source: Path, image_format: str, name: str, progress: Any, *, rate: int | None = None) -> None:
        self.allocate(name, 0)
        self.rates.append(rate)


def context(storage: Storage) -> Any:
    store = MemoryStore()
    add_guest(store, GuestRecord(100, "qemu", "n1", GuestConfig(options={"scsi0": f"{OLD},size=1G"})))
    storages = SimpleNamespace(get=lambda name: storage, volume=lambda volid: (storage, volid.partition(":")[2]))
    return SimpleNamespace(store=store, node="n1", storages=storages, machines=SimpleNamespace(find=lambda vmid: None))


@pytest.mark.parametrize(("limit", "rate"), [(None, None), (0, 0), (100, 102_400)])
def test_a_move_heeds_its_limit(limit: int | None, rate: int | None) -> None:
    storage, task = Storage(), Task()
    handle: Any = task
    MoveDisk(100, "scsi0", "local", "qcow2", limit=limit).run(context(storage), handle)
    assert storage.rates == [rate]
    assert list(task.records.values()) == ["guest.settle_move"]


def test_what_somebody_else_made_meanwhile_is_not_removed_by_the_undo() -> None:
    storage, task = Storage(taken=True), Task()
    handle: Any = task
    with pytest.raises(AlreadyExists):
        MoveDisk(100, "scsi0", "local", "qcow2").run(context(storage), handle)
    with pytest.raises(AlreadyExists):
        make_drive(context(storage), handle, 100, parse_drive("scsi1", "local:1"))
    assert task.records == {}
