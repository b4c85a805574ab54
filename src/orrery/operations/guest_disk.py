# SPDX-License-Identifier: AGPL-3.0-or-later
"""Disks of a machine: growing them, and moving them to another storage or format, also while the machine runs."""

from dataclasses import dataclass
from typing import ClassVar

from orrery.drivers.qemu.plan import VolumeFile
from orrery.drivers.storage.options import copy_rate
from orrery.errors import Conflict, Failure, ParameterError
from orrery.model.cloudinit import is_drive
from orrery.model.disks import parse_disk
from orrery.model.disksize import format_size, parse_resize
from orrery.model.guest import GuestConfig
from orrery.model.volume import VolumeId
from orrery.operations import cloudinit
from orrery.operations.context import NodeContext
from orrery.operations.drives import (
    Drive,
    drive_schema,
    drop_volume,
    owned_volumes,
    parse_drive,
    undone_unless_taken,
)
from orrery.operations.guest_lock import check_lock, guest_lock
from orrery.operations.guest_pending import keep_volumes, put
from orrery.store.guests import read_guest
from orrery.system.files import takes_direct
from orrery.tasks.operation import TaskHandle
from orrery.tasks.registry import operation
from orrery.tasks.revert import Log, undo

BLOCK = 4096
"""Bytes; images of other sizes cannot be opened without the page cache on disks of 4 KiB sectors."""


@dataclass(frozen=True)
class DiskVerb:
    """What both verbs have in common."""

    vmid: int
    disk: str

    def is_cloudinit(self, ctx: NodeContext) -> bool:
        """Whether the disk is the drive of the machine's cloud-init medium, which is made rather than copied."""
        config = read_guest(ctx.store, self.vmid, kind="qemu", node=ctx.node).record.config
        return is_drive(config.options.get(self.disk))

    def subject(self) -> str:
        return str(self.vmid)

    def locks(self) -> tuple[str, ...]:
        return (guest_lock(self.vmid),)

    def volume(self, config: GuestConfig) -> tuple[Drive, VolumeId]:
        """The disk and its volume. Raises `ParameterError` for disks that are not there or have none."""
        text = config.options.get(self.disk)
        if text is None:
            raise ParameterError({"disk": f"disk '{self.disk}' does not exist"})
        drive = parse_drive(self.disk, text)
        if drive.volume is None or drive.is_cdrom:
            raise ParameterError({"disk": f"'{self.disk}' has no disk image"})
        if str(drive.volume) not in owned_volumes(self.vmid, [text]):
            raise ParameterError({"disk": f"'{drive.volume}' is no image of guest {self.vmid}"})
        return drive, drive.volume


@operation
@dataclass(frozen=True)
class ResizeDisk(DiskVerb):
    """Grows disk `disk` to `size`, or by it with a leading plus."""

    kind: ClassVar[str] = "resize"

    size: str = ""
    digest: str | None = None
    skiplock: bool = False

    def storage(self, config: GuestConfig) -> str:
        """The storage on which space is needed."""
        return self.volume(config)[1].storage

    def target(self, ctx: NodeContext, volume: VolumeId) -> int:
        """The new size in bytes, whole blocks. Raises `ParameterError` when it is absurd or the disk would shrink."""
        storage, name = ctx.storages.volume(str(volume))
        now = storage.info(name).size
        try:
            relative, amount = parse_resize(self.size)
        except ValueError as error:
            raise ParameterError({"size": str(error)[:200]}) from error
        size = now + amount if relative else amount
        size = -(-size // BLOCK) * BLOCK
        if size < now:
            raise ParameterError({"size": f"shrinking disks is not supported: '{self.disk}' has {format_size(now)}"})
        return size

    def check(self, ctx: NodeContext) -> None:
        """Raises what keeps the disk from growing."""
        config = read_guest(ctx.store, self.vmid, kind="qemu", node=ctx.node).record.config
        if self.digest is not None and self.digest != config.digest():
            raise Conflict
        check_lock(config, skip=self.skiplock)
        self.target(ctx, self.volume(config)[1])

    def run(self, ctx: NodeContext, task: TaskHandle) -> None:
        """Growing cannot be undone, and needs not: a kill leaves a disk that is larger than its option says."""
        self.check(ctx)
        stored = read_guest(ctx.store, self.vmid, kind="qemu", node=ctx.node)
        drive, volume = self.volume(stored.record.config)
        size = self.target(ctx, volume)
        task.step("resize", volume=str(volume), size=size)
        task.commit()
        storage, name = ctx.storages.volume(str(volume))
        if ctx.machines.find(self.vmid) is not None:
            with ctx.machines.live(self.vmid, stored.record.config) as live:
                live.resize(self.disk, size)
        elif size > storage.info(name).size:
            storage.resize(name, size)
        text = drive_schema(self.disk).print({**drive.values, "size": format_size(size)})
        put(ctx, stored, stored.record.config.with_options({self.disk: text}))
        task.log(f"{self.disk} has {format_size(size)}")


@operation
@dataclass(frozen=True)
class MoveDisk(DiskVerb):
    """Copies disk `disk` to `target`, in `format` (the storage's default when None), and uses the copy from then on.

    The original becomes an unused disk, with `delete` it is removed. `limit` is in KiB/s, 0 for none; without it the
    slower of what the two storages allow holds.
    """

    kind: ClassVar[str] = "qmmove"

    target: str = ""
    format: str | None = None
    delete: bool = False
    digest: str | None = None
    limit: int | None = None

    def check(self, ctx: NodeContext) -> None:
        """Raises what keeps the disk from being moved."""
        if self.is_cloudinit(ctx):
            config = read_guest(ctx.store, self.vmid, kind="qemu", node=ctx.node).record.config
            cloudinit.check_move(ctx, config, self.disk, self.target, self.digest)
            return
        config = read_guest(ctx.store, self.vmid, kind="qemu", node=ctx.node).record.config
        if self.digest is not None and self.digest != config.digest():
            raise Conflict
        check_lock(config)
        _, volume = self.volume(config)
        if self.disk in config.pending or self.disk in config.pending_deletes:
            raise Failure(f"'{self.disk}' has pending changes: apply or revert them first")
        driver = ctx.storages.get(self.target)
        if "images" not in driver.contents:
            raise ParameterError({"storage": f"storage '{self.target}' does not support content type 'images'"})
        wanted = self.format or driver.formats[0]
        if wanted not in driver.formats:
            raise ParameterError({"format": f"storage '{self.target}' has no images of format '{wanted}'"})
        storage, name = ctx.storages.volume(str(volume))
        if volume.storage == self.target and storage.info(name).format == wanted:
            raise Failure("you can't move to the same storage with same format")

    def rate(self, ctx: NodeContext, volume: VolumeId) -> int | None:
        """Bytes a second that may be copied from `volume`; None for no limit, 0 for none whatever storages say."""
        if self.limit is not None:
            return self.limit * 1024
        storages = {volume.storage, self.target}
        rates = [copy_rate(ctx.storages.definition(storage).get("bwlimit")) for storage in storages]
        return min((rate for rate in rates if rate), default=None)

    def run(self, ctx: NodeContext, task: TaskHandle) -> None:
        """Copies, switches over, writes the configuration; until then a failure leaves everything as it was."""
        self.check(ctx)
        if self.is_cloudinit(ctx):
            cloudinit.move(ctx, task, self.vmid, self.disk, self.target, self.format)
            return
        stored = read_guest(ctx.store, self.vmid, kind="qemu", node=ctx.node)
        drive, volume = self.volume(stored.record.config)
        storage, name = ctx.storages.volume(str(volume))
        info = storage.info(name)
        target = ctx.storages.get(self.target)
        format_ = self.format or target.formats[0]
        new_name = target.next_name(self.vmid, format_)
        new = f"{self.target}:{new_name}"
        before = stored.record.config.options[self.disk]
        task.log(f"copying {volume} to {new}")
        text = drive_schema(self.disk).print({**drive.values, "file": new})
        config = keep_volumes(self.vmid, stored.record.config, stored.record.config.with_options({self.disk: text}))

        def progress(done: int, total: int) -> None:
            task.progress(done, total, "bytes", "copy")

        def switch() -> None:
            task.step("switch")
            put(ctx, stored, config)

        rate = self.rate(ctx, volume)
        undo = {"vmid": self.vmid, "disk": self.disk, "before": before, "volume": new}
        with undone_unless_taken(task, "guest.settle_move", **undo):
            if ctx.machines.find(self.vmid) is not None and not self.disk.startswith("unused"):
                target.allocate(new_name, info.size)
                path = target.path(new_name)
                file = VolumeFile(path, format_, direct=takes_direct(path))
                with ctx.machines.jobs(self.vmid, stored.record.config) as jobs:
                    disk = parse_disk(self.disk, before)
                    jobs.move_disk(disk, file, progress, before_switch=switch, speed=rate or 0)
            else:
                target.copy_in(storage.path(name), info.format, new_name, progress, rate=rate)
                switch()
        task.commit()
        if self.delete:
            remove_original(ctx, task, self.vmid, str(volume))


@undo("guest.settle_move")
def settle_move(ctx: NodeContext, log: Log, *, vmid: int, disk: str, before: str, volume: str) -> None:
    """Ends a move that was cut off. A running machine decides: on whichever volume it is, the other one goes.

    The configuration names the new volume only after both hold the same, and every write since then reaches both; so
    a machine that does not run may go on with what its configuration names.
    """
    stored = read_guest(ctx.store, vmid, kind="qemu", node=ctx.node)
    running = ctx.machines.find(vmid)
    if running is not None and not disk.startswith("unused"):
        storage, name = ctx.storages.volume(volume)
        with ctx.machines.jobs(vmid, stored.record.config) as jobs:
            jobs.abandon(disk)
        with ctx.machines.live(vmid, stored.record.config) as live:
            switched = live.medium_path(disk, running.pid) == storage.path(name)
        if not switched and stored.record.config.options.get(disk) != before:
            old = before.split(",", 1)[0]
            unused = [key for key, text in stored.record.config.options.items() if text == old]
            put(ctx, stored, stored.record.config.with_options({disk: before}, unused))
            log(f"{disk} stays on {old}")
    drop_volume(ctx, log, vmid=vmid, volume=volume)


def remove_original(ctx: NodeContext, task: TaskHandle, vmid: int, volume: str) -> None:
    """Removes a moved disk's original, which stands as an unused disk until then."""
    stored = read_guest(ctx.store, vmid, kind="qemu", node=ctx.node)
    keys = [key for key, text in stored.record.config.options.items() if key.startswith("unused") and text == volume]
    task.before("guest.drop_volume", vmid=vmid, volume=volume)
    put(ctx, stored, stored.record.config.with_options({}, keys))
    drop_volume(ctx, task.log, vmid=vmid, volume=volume)
