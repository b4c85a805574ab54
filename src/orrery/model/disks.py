# SPDX-License-Identifier: AGPL-3.0-or-later
"""Typed view of disks and CD-ROM drives."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import unquote

from orrery.model.disksize import parse_size
from orrery.model.machine_properties import EFI_DISK, IDE_DISK, SATA_DISK, SCSI_DISK, VIRTIO_DISK
from orrery.model.propertystring import PropertyString
from orrery.model.values import Value
from orrery.model.volume import VolumeId

Bus = Literal["ide", "sata", "scsi", "virtio"]
BUSES: tuple[Bus, ...] = ("scsi", "virtio", "sata", "ide")
SCHEMAS: Mapping[Bus, PropertyString] = {
    "ide": IDE_DISK,
    "sata": SATA_DISK,
    "scsi": SCSI_DISK,
    "virtio": VIRTIO_DISK,
}
MIB = 1 << 20

_DIRECTIONS = (("", "total"), ("_rd", "read"), ("_wr", "write"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """A disk or CD-ROM drive on a bus.

    Its medium is a `volume`, a `path` of the host, or nothing (an empty drive, or with `host_drive` the host's own).
    `size` is in bytes, as last recorded. `throttle` maps the names of QEMU's throttle group (`bps-total`,
    `iops-read-max`, …) to numbers. None means that nothing was said and the driver's default holds.
    """

    key: str
    bus: Bus
    index: int
    volume: VolumeId | None = None
    path: str | None = None
    host_drive: bool = False
    is_cdrom: bool = False
    import_from: str | None = None
    format: str | None = None
    size: int | None = None
    cache: str | None = None
    aio: str | None = None
    discard: bool = False
    detect_zeroes: bool | None = None
    iothread: bool = False
    ssd: bool = False
    serial: str | None = None
    readonly: bool = False
    backup: bool = True
    replicate: bool = True
    shared: bool = False
    rerror: str | None = None
    werror: str | None = None
    throttle: Mapping[str, int] = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        """Whether no medium lies in the drive."""
        return self.volume is None and self.path is None and not self.host_drive


@dataclass(frozen=True, slots=True)
class EfiDisk:
    """The disk that keeps a machine's UEFI variables. `type` is `2m` or `4m`."""

    volume: VolumeId | None
    path: str | None
    format: str | None
    size: int | None
    type: str
    pre_enrolled_keys: bool


def parse_disk(key: str, text: str) -> Disk:
    """Read the option `key` (`scsi0`); ValueError when key or text are no disk's."""
    bus, index = _bus_of(key)
    values = SCHEMAS[bus].parse(text, key)
    file = str(values["file"])
    return Disk(
        key=key,
        bus=bus,
        index=index,
        volume=_volume(file),
        path=file if file.startswith("/") else None,
        host_drive=file == "cdrom",
        is_cdrom=values.get("media") == "cdrom" or file in ("none", "cdrom"),
        import_from=_word(values, "import-from"),
        format=_word(values, "format"),
        size=_size(values),
        cache=_word(values, "cache"),
        aio=_word(values, "aio"),
        discard=values.get("discard") == "on",
        detect_zeroes=bool(values["detect_zeroes"]) if "detect_zeroes" in values else None,
        iothread=bool(values.get("iothread", False)),
        ssd=bool(values.get("ssd", False)),
        serial=unquote(str(values["serial"])) if "serial" in values else None,
        readonly=bool(values.get("ro", False)),
        backup=bool(values.get("backup", True)),
        replicate=bool(values.get("replicate", True)),
        shared=bool(values.get("shared", False)),
        rerror=_word(values, "rerror"),
        werror=_word(values, "werror"),
        throttle=dict(_throttle(values)),
    )


def parse_efi_disk(text: str) -> EfiDisk:
    """Read the option `efidisk0`; ValueError when the text is none."""
    values = EFI_DISK.parse(text, "efidisk0")
    file = str(values["file"])
    return EfiDisk(
        _volume(file),
        file if file.startswith("/") else None,
        _word(values, "format"),
        _size(values),
        str(values.get("efitype", "2m")),
        bool(values.get("pre-enrolled-keys", False)),
    )


def _bus_of(key: str) -> tuple[Bus, int]:
    for bus in BUSES:
        number = key.removeprefix(bus)
        if number != key and number.isascii() and number.isdecimal():
            return bus, int(number)
    raise ValueError(f"'{key}' is not a disk")


def _volume(file: str) -> VolumeId | None:
    return None if file in ("none", "cdrom") or file.startswith("/") else VolumeId.parse(file)


def _word(values: Mapping[str, Value], key: str) -> str | None:
    return str(values[key]) if key in values else None


def _size(values: Mapping[str, Value]) -> int | None:
    return parse_size(str(values["size"])) if "size" in values else None


def _throttle(values: Mapping[str, Value]) -> Iterator[tuple[str, int]]:
    """Limits under QEMU's names; a rate in MiB/s counts before one in bytes. Zero means no limit."""
    for suffix, direction in _DIRECTIONS:
        found = {
            f"bps-{direction}": _rate(values, f"mbps{suffix}", MIB) or _rate(values, f"bps{suffix}"),
            f"bps-{direction}-max": _rate(values, f"mbps{suffix}_max", MIB),
            f"bps-{direction}-max-length": _rate(values, f"bps{suffix}_max_length"),
            f"iops-{direction}": _rate(values, f"iops{suffix}"),
            f"iops-{direction}-max": _rate(values, f"iops{suffix}_max"),
            f"iops-{direction}-max-length": _rate(values, f"iops{suffix}_max_length"),
        }
        yield from ((name, number) for name, number in found.items() if number > 0)


def _rate(values: Mapping[str, Value], key: str, factor: int = 1) -> int:
    return int(float(values.get(key, 0)) * factor)
