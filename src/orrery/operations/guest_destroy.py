# SPDX-License-Identifier: AGPL-3.0-or-later
"""Destroying a machine. When the first volume has gone there is no way back: a broken one is finished, not undone."""

from dataclasses import dataclass
from typing import ClassVar

from orrery.access.pools import forget_guest
from orrery.errors import Failure, OrreryError
from orrery.model.guest import GuestConfig, GuestKind
from orrery.operations.cloudinit import forget as forget_cloudinit
from orrery.operations.context import NodeContext
from orrery.operations.drives import owned_volumes, texts
from orrery.operations.guest_kind import release
from orrery.operations.guest_lock import NOUNS, check_lock, guest_lock
from orrery.store.documents import atomically
from orrery.store.guests import find_guest, read_guest, remove_guest
from orrery.tasks.operation import TaskHandle
from orrery.tasks.registry import operation
from orrery.tasks.revert import Log, undo


@operation
@dataclass(frozen=True)
class DestroyMachine:
    """Removes machine `vmid` and its volumes.

    `unreferenced` also removes images of its number that no option names. Its place in a pool and the rights on it go
    with it, so that a later machine of its number inherits neither.
    """

    kind: ClassVar[str] = "qmdestroy"

    vmid: int
    unreferenced: bool = False
    skiplock: bool = False

    def subject(self) -> str:
        return str(self.vmid)

    def locks(self) -> tuple[str, ...]:
        return (guest_lock(self.vmid),)

    def check(self, ctx: NodeContext) -> None:
        """Raises `NotFound`, `Locked`, or `Failure` for protected and running machines."""
        config = read_guest(ctx.store, self.vmid, kind="qemu", node=ctx.node).record.config
        check_lock(config, skip=self.skiplock)
        check_unprotected(config, self.vmid, "qemu")
        if ctx.machines.find(self.vmid) is not None:
            raise Failure(f"VM {self.vmid} is running - destroy failed")

    def run(self, ctx: NodeContext, task: TaskHandle) -> None:
        """Removes volumes, then the configuration. A kill in between is finished by the record's own action."""
        self.check(ctx)
        destroy(ctx, task, self.vmid, "qemu", unreferenced_too=self.unreferenced)
        task.commit()


def check_unprotected(config: GuestConfig, vmid: int, kind: GuestKind) -> None:
    """Raises `Failure` for a guest that is protected from removal."""
    if config.options.get("protection") == "1":
        raise Failure(f"can't remove {NOUNS[kind]} {vmid} - protection mode enabled")


def destroy(ctx: NodeContext, task: TaskHandle, vmid: int, kind: GuestKind, *, unreferenced_too: bool) -> None:
    """Removes the volumes of a guest that does not run, then its configuration."""
    config = read_guest(ctx.store, vmid, kind=kind, node=ctx.node).record.config
    volumes = owned_volumes(vmid, texts(config))
    if unreferenced_too:
        volumes += [volume for volume in unreferenced(ctx, vmid) if volume not in volumes]
    check_removable(ctx, volumes)
    task.step("destroy")
    task.before("guest.finish_destroy", vmid=vmid, volumes=volumes, kind=kind)
    finish_destroy(ctx, task.log, vmid=vmid, volumes=volumes, kind=kind)


def unreferenced(ctx: NodeContext, vmid: int) -> list[str]:
    """Images of the guest's number on all storages that can be read."""
    found = []
    for name in ctx.storages.names():
        try:
            found += [volume.volid for volume in ctx.storages.get(name).list(("images", "rootdir"), vmid)]
        except OrreryError:
            continue  # a storage that is off or away keeps its images; nothing of it can be removed now
    return found


def check_removable(ctx: NodeContext, volumes: list[str]) -> None:
    """Raises before anything is removed when a volume's storage is away."""
    for volume in volumes:
        ctx.storages.volume(volume)


@undo("guest.finish_destroy")
def finish_destroy(ctx: NodeContext, log: Log, *, vmid: int, volumes: list[str], kind: GuestKind = "qemu") -> None:
    """Removes what is left of a guest whose destruction has begun."""
    found = find_guest(ctx.store, vmid)
    for volume in volumes:
        storage, name = ctx.storages.volume(volume)
        storage.free(name)
        log(f"removed {volume}")
    atomically(ctx.store, lambda transaction: forget_guest(transaction, vmid))
    release(ctx, vmid, kind)
    forget_cloudinit(ctx, vmid)
    if found is not None and found.record.node == ctx.node:
        remove_guest(ctx.store, vmid, found.revision)
    log(f"{NOUNS[kind]} {vmid} is gone")
