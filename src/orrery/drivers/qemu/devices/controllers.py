# SPDX-License-Identifier: AGPL-3.0-or-later
"""Controllers that disks are attached to: SCSI of several kinds, SATA; IDE is part of the chipset."""

from dataclasses import dataclass
from typing import Final

from orrery.drivers.qemu.devices.parts import Context, Parts, Properties
from orrery.errors import Failure
from orrery.model.disks import Disk

_LSI_TARGETS: Final = 7
_SATA_PORTS: Final = 6
_DRIVERS: Final = {
    "lsi": "lsi",
    "lsi53c810": "lsi53c810",
    "megasas": "megasas",
    "pvscsi": "pvscsi",
    "virtio-scsi-pci": "virtio-scsi-pci",
    "virtio-scsi-single": "virtio-scsi-pci",
}


@dataclass(frozen=True, slots=True)
class Seat:
    """Where a disk is attached: its controller's id (None: part of the chipset), place and the disk's own address."""

    controller: str | None
    place: str
    address: Properties


def seat(disk: Disk, context: Context) -> Seat:
    """The seat of an IDE, SATA or SCSI disk."""
    match disk.bus:
        case "ide":
            if context.layout.chipset == "q35":
                return Seat(None, "", {"bus": f"ide.{disk.index}", "unit": 0})
            return Seat(None, "", {"bus": f"ide.{disk.index // 2}", "unit": disk.index % 2})
        case "sata":
            return Seat("ahci0", "ahci0", {"bus": f"ahci0.{disk.index % _SATA_PORTS}", "unit": 0})
        case "scsi":
            return _scsi(disk.index, context.view.scsihw)
    raise Failure(f"'{disk.key}' needs no controller")


def _scsi(index: int, kind: str) -> Seat:
    if kind == "virtio-scsi-single":
        name = f"virtioscsi{index}"
        return Seat(name, f"scsisingle{index}", _address(name, 0, index))
    if kind == "virtio-scsi-pci":
        return Seat("scsihw0", "scsihw0", _address("scsihw0", 0, index))
    if kind in ("lsi", "lsi53c810"):
        name = f"scsihw{index // _LSI_TARGETS}"
        return Seat(name, name, {"bus": f"{name}.0", "scsi-id": index % _LSI_TARGETS})
    return Seat("scsihw0", "scsihw0", _address("scsihw0", index, 0))


def _address(controller: str, target: int, lun: int) -> Properties:
    return {"bus": f"{controller}.0", "channel": 0, "scsi-id": target, "lun": lun}


def iothread_of(disk: Disk, context: Context) -> str | None:
    """Id of the disk's own thread; only virtio disks and virtio-scsi-single have the choice."""
    able = disk.bus == "virtio" or (disk.bus == "scsi" and context.view.scsihw == "virtio-scsi-single")
    return f"iothread-{disk.key}" if disk.iothread and able else None


def args(disk: Disk, context: Context) -> Parts:
    """The controller of a disk, as far as it is no part of the chipset. Several disks may name the same one."""
    place = seat(disk, context)
    if place.controller is None:
        return Parts()
    if disk.bus == "sata":
        device: Properties = {"driver": "ich9-ahci", "id": "ahci0", **context.layout.place("ahci0")}
        return Parts(devices=[device])
    device = {
        "driver": _DRIVERS[context.view.scsihw],
        "id": place.controller,
        **context.layout.place(place.place),
    }
    thread = iothread_of(disk, context)
    if thread:
        device["iothread"] = thread
    return Parts(devices=[device])


def standing(context: Context) -> Parts:
    """The controller that a machine has even without disks, so that the first one can be plugged while it runs."""
    if context.view.scsihw != "virtio-scsi-pci":
        return Parts()
    return Parts(devices=[{"driver": "virtio-scsi-pci", "id": "scsihw0", **context.layout.place("scsihw0")}])
