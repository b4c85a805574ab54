# SPDX-License-Identifier: AGPL-3.0-or-later
"""Disks and CD-ROM drives.

A drive is a block node `drive-KEY` (format) above `file-KEY` (the opened file), with its backing images below. Which
files those are is said by us alone: what an image says about other files is never followed. Rates are limited at the
device, so that copying a drive to another storage is not slowed by them.
"""

from typing import Any, Final

from orrery.drivers.qemu.devices import controllers
from orrery.drivers.qemu.devices.parts import Context, Parts, Properties
from orrery.drivers.qemu.plan import Command, VolumeFile
from orrery.errors import Failure
from orrery.model.disks import Disk

_DIRECT: Final = (None, "none", "directsync")
_WRITETHROUGH: Final = ("writethrough", "directsync")
_NO_LIMITS: Final = dict.fromkeys(("bps", "bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr"), 0)
_DIRECTIONS: Final = {"total": "", "read": "_rd", "write": "_wr"}


def node_name(key: str, generation: int = 0) -> str:
    """Name of a drive's block node; a drive that moves while it is in use changes to the next generation."""
    return f"drive-{key}" if generation == 0 else f"drive-{key}.{generation}"


def args(disk: Disk, context: Context) -> Parts:
    """A drive with its medium; controllers come from `controllers.args`."""
    parts = Parts()
    if disk.host_drive:
        raise Failure(f"'{disk.key}': the host's CD-ROM drive is not supported")
    if not disk.is_empty:
        volume = context.volumes.get(disk.key)
        if volume is None:
            raise Failure(f"'{disk.key}': its volume was not opened")
        parts.blockdevs.append(block_node(disk, volume, context, node_name(disk.key)))
        if disk.cache in _DIRECT and not volume.direct and not disk.is_cdrom:
            parts.notes.append(
                f"{disk.key}: the file system of its volume has no direct access; it goes through the host's cache"
            )
    elif not disk.is_cdrom or disk.bus == "virtio":
        raise Failure(f"'{disk.key}': only a CD-ROM drive on ide, sata or scsi can be empty")
    thread = controllers.iothread_of(disk, context)
    if thread:
        parts.objects.append({"qom-type": "iothread", "id": thread})
    elif disk.iothread:
        parts.notes.append(
            f"{disk.key}: iothread has no effect here; it needs a virtio disk or scsihw virtio-scsi-single"
        )
    parts.devices.append(_device(disk, context))
    if disk.throttle:
        parts.commands.append(throttle(disk))
    return parts


def throttle(disk: Disk) -> Command:
    """The command that puts the disk's rates in force, or lifts those that it had. Raises Failure if they clash."""
    _check_limits(disk)
    limits = {_limit_name(name): number for name, number in disk.throttle.items()}
    device = f"/machine/peripheral/{disk.key}/virtio-backend" if disk.bus == "virtio" else disk.key
    return Command("block_set_io_throttle", {"id": device, **_NO_LIMITS, **limits})


def _check_limits(disk: Disk) -> None:
    """QEMU's own rules, known before the disk is plugged: a guest may not give it back."""
    given = disk.throttle
    for unit in ("bps", "iops"):
        for burst in ("", "-max"):
            parts = [name for name in (f"{unit}-read{burst}", f"{unit}-write{burst}") if name in given]
            if f"{unit}-total{burst}" in given and parts:
                raise Failure(f"'{disk.key}': a limit for all and one for reading or writing alone exclude each other")
        for direction in _DIRECTIONS:
            limit, most = given.get(f"{unit}-{direction}", 0), given.get(f"{unit}-{direction}-max", 0)
            if most and not 0 < limit <= most:
                raise Failure(f"'{disk.key}': a burst needs a lower limit that it exceeds for a while")
            if f"{unit}-{direction}-max-length" in given and not most:
                raise Failure(f"'{disk.key}': the length of a burst needs the burst's rate")


def _limit_name(name: str) -> str:
    """`bps-read-max-length` is `bps_rd_max_length` there."""
    unit, direction, *rest = name.split("-")
    return "_".join([unit + _DIRECTIONS[direction], *rest])


# --- block nodes


def block_node(disk: Disk, volume: VolumeFile, context: Context, name: str) -> Properties:
    """The block node of a medium, with everything below it."""
    suffix = name.removeprefix("drive-")
    if disk.is_cdrom:
        return _node(volume, context, name, f"file-{suffix}", {"read-only": True}, {"read-only": True})
    read_only = disk.readonly or volume.read_only
    direct = disk.cache in _DIRECT and volume.direct
    cache = {"direct": direct, "no-flush": disk.cache == "unsafe"}
    discard = "unmap" if disk.discard else "ignore"
    zeroes = "off" if disk.detect_zeroes is False else "unmap" if disk.discard else "on"
    common: dict[str, Any] = {"read-only": read_only, "cache": cache, "discard": discard}
    return _node(
        volume,
        context,
        name,
        f"file-{suffix}",
        {**common, "detect-zeroes": zeroes},
        {**common, "aio": _aio(disk, context, direct=direct)},
    )


def _aio(disk: Disk, context: Context, *, direct: bool) -> str:
    if disk.aio == "native" and disk.cache not in _DIRECT:
        raise Failure(f"'{disk.key}': aio=native needs cache=none or cache=directsync")
    if disk.aio == "native" and not direct:
        return "threads"
    return disk.aio or context.aio


def _node(
    volume: VolumeFile, context: Context, name: str, file_name: str, upper: Properties, lower: Properties
) -> Properties:
    file = context.sources.file(volume.path, writable=not lower["read-only"], label=name, image=volume.format)
    node: Properties = {
        "driver": volume.format,
        "node-name": name,
        **upper,
        "file": {"driver": "file", "node-name": file_name, "filename": file, **lower},
    }
    if volume.format != "raw":
        node["backing"] = _backing(volume.backing, context, name, upper, lower)
    return node


def _backing(
    volume: VolumeFile | None, context: Context, label: str, upper: Properties, lower: Properties, depth: int = 1
) -> Properties | None:
    """The image below, never written to; None says that there is none, whatever the image itself says."""
    if volume is None:
        return None
    suffix = label.removeprefix("drive-")
    above = {"read-only": True, **({"cache": upper["cache"]} if "cache" in upper else {})}
    below = {**lower, "read-only": True}
    below.pop("discard", None)
    file = context.sources.file(volume.path, writable=False, label=label, image=volume.format)
    node: Properties = {
        "driver": volume.format,
        "node-name": f"base{depth}-{suffix}",
        **above,
        "file": {"driver": "file", "node-name": f"basefile{depth}-{suffix}", "filename": file, **below},
    }
    if volume.format != "raw":
        node["backing"] = _backing(volume.backing, context, label, upper, lower, depth + 1)
    return node


# --- devices


def _device(disk: Disk, context: Context) -> Properties:
    drive = {} if disk.is_empty else {"drive": node_name(disk.key)}
    shared: Properties = {**drive, **context.bootindex(disk.key)}
    if disk.serial is not None:
        shared["serial"] = disk.serial
    for name in ("rerror", "werror"):
        policy = getattr(disk, name)
        if policy is not None and not disk.is_cdrom:
            shared[name] = policy
    if disk.cache in _WRITETHROUGH and not disk.is_cdrom:
        shared["write-cache"] = "off"
    if disk.bus == "virtio":
        thread = controllers.iothread_of(disk, context)
        return {
            "driver": "virtio-blk-pci",
            "id": disk.key,
            **context.layout.place(disk.key),
            **shared,
            **({"iothread": thread} if thread else {}),
        }
    family = "scsi" if disk.bus == "scsi" else "ide"
    device = {
        "driver": f"{family}-{'cd' if disk.is_cdrom else 'hd'}",
        "id": disk.key,
        **controllers.seat(disk, context).address,
        **shared,
    }
    if disk.bus == "scsi":
        device["device_id"] = node_name(disk.key)
    if disk.ssd and not disk.is_cdrom:
        device["rotation_rate"] = 1
    return device
