# SPDX-License-Identifier: AGPL-3.0-or-later
"""Volumes of a container: growing them, and moving them to another storage or to another container."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from orrery.drivers.storage import filesystem
from orrery.drivers.storage.base import VolumeInfo
from orrery.drivers.storage.copy_tree import copy_tree
from orrery.errors import Conflict, Failure, ParameterError
from orrery.model.container import is_mount
from orrery.model.container_devices import MountPoint
from orrery.model.disksize import format_size, parse_resize
from orrery.model.guest import GuestConfig
from orrery.model.volume import SUBVOL
from orrery.operations.container_mounts import (
    container_mount,
    final_text,
    names_volume,
    place_of,
    read_mount,
    volume_format,
)
from orrery.operations.container_power import ContainerVerb
from orrery.operations.context import NodeContext
from orrery.operations.drives import drop_volume, owned_volumes, undone_unless_taken
from orrery.operations.guest_lock import check_lock, guest_lock
from orrery.operations.guest_pending import keep_volumes, put
from orrery.store.guests import StoredGuest, read_guest
from orrery.system import host, livemounts, mounts
from orrery.system.mounts import ContainerMount, Folder, LoopImage
from orrery.tasks.operation import TaskHandle
from orrery.tasks.registry import operation

SYS_RESOURCE = 24
"""CAP_SYS_RESOURCE, without which ext4 does not grow while it is mounted."""

BLOCK = 4096
"""Bytes; file systems have whole blocks."""


def owned_mount(vmid: int, config: GuestConfig, key: str, parameter: str) -> MountPoint:
    """The mount point, with a volume of the container. Raises `ParameterError` for what is not there or has none."""
    text = config.options.get(key) if names_volume(key) else None
    if text is None:
        raise ParameterError({parameter: f"volume '{key}' does not exist"})
    mount = read_mount(key, text)
    if mount.volume is None:
        raise ParameterError({parameter: f"'{key}' has no volume: it shows a {mount.source} of the host"})
    if str(mount.volume) not in owned_volumes(vmid, [text]):
        raise ParameterError({parameter: f"'{mount.volume}' is no volume of guest {vmid}"})
    return mount


@operation
@dataclass(frozen=True)
class ResizeMount(ContainerVerb):
    """Grows the volume of mount point `disk` to `size`, or by it with a leading plus; also while the container runs."""

    kind: ClassVar[str] = "resize"
    registered_as: ClassVar[str] = "vzresize"

    disk: str = ""
    size: str = ""
    digest: str | None = None

    def storage(self, config: GuestConfig) -> str:
        """The storage on which space is needed."""
        return str(owned_mount(self.vmid, config, self.disk, "disk").storage)

    def target(self, info: VolumeInfo) -> int:
        """The new size in bytes, whole blocks. Raises `ParameterError` when it is absurd or the volume would shrink."""
        if info.format == SUBVOL and not info.size:
            raise ParameterError({"disk": f"'{self.disk}' is a folder without a size"})
        try:
            relative, amount = parse_resize(self.size)
        except ValueError as error:
            raise ParameterError({"size": str(error)[:200]}) from error
        size = -(-(info.size + amount if relative else amount) // BLOCK) * BLOCK
        if size < info.size:
            raise ParameterError({"size": f"unable to shrink disk size: '{self.disk}' has {format_size(info.size)}"})
        return size

    def check(self, ctx: NodeContext) -> None:
        """Raises what keeps the volume from growing."""
        config = self.config(ctx)
        if self.digest is not None and self.digest != config.digest():
            raise Conflict
        mount = owned_mount(self.vmid, config, self.disk, "disk")
        storage, name = ctx.storages.volume(str(mount.volume))
        info = storage.info(name)
        self.target(info)
        if self.in_use(ctx) and info.format != SUBVOL and not host.has_capability(SYS_RESOURCE):
            raise Failure(f"this host lets nobody grow a file system that is in use: stop CT {self.vmid} first")

    def in_use(self, ctx: NodeContext) -> bool:
        """Whether the volume is mounted in a running container."""
        return is_mount(self.disk) and ctx.containers.find(self.vmid) is not None

    def run(self, ctx: NodeContext, task: TaskHandle) -> None:
        """Growing cannot be undone, and needs not: a kill leaves a volume that is larger than its option says."""
        self.check(ctx)
        stored = read_guest(ctx.store, self.vmid, kind="lxc", node=ctx.node)
        mount = owned_mount(self.vmid, stored.record.config, self.disk, "disk")
        storage, name = ctx.storages.volume(str(mount.volume))
        info = storage.info(name)
        size = self.target(info)
        task.step("resize", volume=str(mount.volume), size=size)
        task.commit()
        if info.format == SUBVOL or not self.in_use(ctx):
            filesystem.grow_volume(storage, name, size)
        else:
            storage.resize(name, size)
            ctx.containers.grow_mount(self.vmid, container_mount(ctx, mount))
        text = final_text(self.disk, stored.record.config.options[self.disk], str(mount.volume), size)
        put(ctx, stored, stored.record.config.with_options({self.disk: text}))
        task.log(f"{self.disk} has {format_size(size)}")


@operation
@dataclass(frozen=True)
class MoveVolume(ContainerVerb):
    """Moves the volume of mount point `volume` to the storage `storage`, or to the container `target_vmid`.

    To a storage it is copied; the original becomes an unused volume, with `delete` it is removed. To a container it is
    handed over as `target_volume` (by default of the same name). `bwlimit` in KiB/s holds for images.
    """

    kind: ClassVar[str] = "move_volume"

    volume: str = ""
    storage: str | None = None
    delete: bool = False
    digest: str | None = None
    target_vmid: int | None = None
    target_volume: str | None = None
    target_digest: str | None = None
    bwlimit: int | None = None

    def locks(self) -> tuple[str, ...]:
        own = guest_lock(self.vmid)
        return (own,) if self.target_vmid in (None, self.vmid) else (own, guest_lock(int(self.target_vmid or 0)))

    @property
    def place(self) -> str:
        """The option under which the other container gets the volume."""
        return self.target_volume or self.volume

    def check(self, ctx: NodeContext) -> None:
        """Raises what keeps the volume from being moved."""
        config = self.config(ctx)
        if self.digest is not None and self.digest != config.digest():
            raise Conflict
        mount = owned_mount(self.vmid, config, self.volume, "volume")
        if (self.storage is None) == (self.target_vmid is None):
            raise ParameterError({"storage": "name either a storage or a container to move to"})
        if ctx.containers.find(self.vmid) is not None and is_mount(self.volume):
            raise Failure("cannot move volumes of a running container")
        if self.volume in config.pending or self.volume in config.pending_deletes:
            raise Failure(f"'{self.volume}' has pending changes: apply or revert them first")
        if self.storage is not None:
            self._check_storage(ctx, mount)
        else:
            self._check_container(ctx)

    def _check_storage(self, ctx: NodeContext, mount: MountPoint) -> None:
        target = ctx.storages.get(str(self.storage))
        if "rootdir" not in target.contents:
            raise ParameterError({"storage": f"storage '{self.storage}' does not support content type 'rootdir'"})
        if mount.storage == self.storage:
            raise Failure(f"storage '{self.storage}' already holds '{mount.volume}'")
        storage, name = ctx.storages.volume(str(mount.volume))
        volume_format(target, "storage", storage.info(name).size)

    def _check_container(self, ctx: NodeContext) -> None:
        if self.volume == "rootfs" or self.place == "rootfs":
            raise ParameterError({"volume": "a root file system cannot be given to another container"})
        if self.target_vmid == self.vmid:
            raise ParameterError({"target-vmid": "must be another container"})
        if not names_volume(self.place):
            raise ParameterError({"target-volume": f"'{self.place}' is neither a mount point nor an unused volume"})
        other = read_guest(ctx.store, int(self.target_vmid or 0), kind="lxc", node=ctx.node).record.config
        check_lock(other, kind="lxc", skip=self.skiplock)
        if self.target_digest is not None and self.target_digest != other.digest():
            raise Conflict
        if self.place in other.apply_pending().options:
            raise ParameterError({"target-volume": f"container {self.target_vmid} has a '{self.place}' already"})
        if is_mount(self.place) and ctx.containers.find(int(self.target_vmid or 0)) is not None:
            raise Failure(f"CT {self.target_vmid} is running: give it the volume as an unused one, or stop it first")

    def run(self, ctx: NodeContext, task: TaskHandle) -> None:
        """Copies, then writes the configuration; until then a failure leaves everything as it was."""
        self.check(ctx)
        stored = read_guest(ctx.store, self.vmid, kind="lxc", node=ctx.node)
        mount = owned_mount(self.vmid, stored.record.config, self.volume, "volume")
        if self.storage is not None:
            new = copy_volume(ctx, task, mount, self.vmid, self.storage, self.bwlimit)
            self._switch(ctx, task, stored, mount, new)
        else:
            other = read_guest(ctx.store, int(self.target_vmid or 0), kind="lxc", node=ctx.node)
            new = copy_volume(ctx, task, mount, other.record.vmid, str(mount.storage), self.bwlimit)
            self._hand_over(ctx, task, stored, other, mount, new)

    def _switch(self, ctx: NodeContext, task: TaskHandle, stored: StoredGuest, mount: MountPoint, new: str) -> None:
        config = stored.record.config
        text = final_text(self.volume, config.options[self.volume], new, info_of(ctx, new).size)
        after = keep_volumes(self.vmid, config, config.with_options({self.volume: text}))
        if self.delete:
            task.before("guest.drop_volume", vmid=self.vmid, volume=str(mount.volume))
            unused = [key for key, value in after.options.items() if value == str(mount.volume)]
            after = after.with_options({}, unused)
        task.step("switch")
        put(ctx, stored, after)
        if self.delete:
            drop_volume(ctx, task.log, vmid=self.vmid, volume=str(mount.volume))
        task.commit()

    def _hand_over(
        self, ctx: NodeContext, task: TaskHandle, stored: StoredGuest, other: StoredGuest, mount: MountPoint, new: str
    ) -> None:
        text = stored.record.config.options[self.volume]
        given = final_text(self.place, text, new, info_of(ctx, new).size) if is_mount(self.place) else new
        task.step("hand over")
        put(ctx, other, other.record.config.with_options({self.place: given}))
        task.before("guest.drop_volume", vmid=self.vmid, volume=str(mount.volume))
        put(ctx, stored, stored.record.config.with_options({}, [self.volume]))
        drop_volume(ctx, task.log, vmid=self.vmid, volume=str(mount.volume))
        task.commit()


def copy_volume(
    ctx: NodeContext, task: TaskHandle, mount: MountPoint, vmid: int, storage: str, bwlimit: int | None
) -> str:
    """Copies a volume to a new one of guest `vmid` on a storage, undone if the task fails; its id."""
    source, name = ctx.storages.volume(str(mount.volume))
    info = source.info(name)
    target = ctx.storages.get(storage)
    target.activate()
    format_ = volume_format(target, "storage", info.size)
    new_name = target.next_name(vmid, format_)
    new = f"{storage}:{new_name}"
    task.log(f"copying {mount.volume} to {new}")
    with undone_unless_taken(task, "guest.drop_volume", vmid=vmid, volume=new):
        if info.format == format_ == "raw":
            rate = None if bwlimit is None else bwlimit * 1024
            target.copy_in(
                source.path(name),
                "raw",
                new_name,
                lambda done, total: task.progress(done, total, "bytes", "copy"),
                trusted=True,
                rate=rate,
            )
        else:
            filesystem.make_volume(target, new_name, info.size)
            task.step("copy")
            old_tree = tree_source(info, source.path(name))
            copy_contents(ctx, task, old_tree, tree_source(info_of(ctx, new), target.path(new_name)))
    return new


def info_of(ctx: NodeContext, volume: str) -> VolumeInfo:
    """What is known of a volume."""
    storage, name = ctx.storages.volume(volume)
    return storage.info(name)


def tree_source(info: VolumeInfo, path: Path) -> LoopImage | Folder:
    """How a volume is mounted."""
    return Folder(path, recursive=False) if info.format == SUBVOL else LoopImage(path)


def copy_contents(ctx: NodeContext, task: TaskHandle, old: LoopImage | Folder, new: LoopImage | Folder) -> None:
    """Copies the tree on one volume to another; both are mounted for this task alone. What is left out is a warning."""
    images = [source.path for source in (old, new) if isinstance(source, LoopImage)]
    for image in images:
        if not livemounts.wait_unused(image):
            raise Failure(f"'{image.name}' is in use")
    places = [place_of(ctx, name) for name in ("old", "new")]
    try:
        with mounts.aside():
            for source, place in zip((old, new), places, strict=True):
                mounts.assemble({"rootfs": ContainerMount("rootfs", source)}, place)
            copy_tree(*places, log=task.warn)
    finally:
        for image in images:
            livemounts.wait_unused(image)
