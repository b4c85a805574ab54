# SPDX-License-Identifier: AGPL-3.0-or-later
"""Changing a machine's options: what can take effect does so at once, the rest is pending until the next start."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from orrery.errors import Conflict, ParameterError
from orrery.model.machine import boot_without
from orrery.operations.cloudinit import refresh_or_warn
from orrery.operations.context import NodeContext
from orrery.operations.drives import check_drive, drop_volume, is_drive, make_drive, names_volume, parse_drive
from orrery.operations.guest_create import with_mac
from orrery.operations.guest_live import apply_live
from orrery.operations.guest_lock import check_lock, guest_lock
from orrery.operations.guest_pending import apply_all, apply_hot, keep_volumes, lost_media, put
from orrery.store.guests import read_guest
from orrery.tasks.operation import TaskHandle
from orrery.tasks.registry import operation


@operation
@dataclass(frozen=True)
class ChangeMachine:
    """Sets, deletes and reverts options of machine `vmid`; `set` holds validated, canonical texts.

    A deleted disk becomes an unused one, with `force` it is removed for good; deleting an unused disk removes it.
    `digest` is that of the configuration on which the caller based the change. `secrets` are options like those in
    `set`, whose values nobody else may see.
    """

    kind: ClassVar[str] = "qmconfig"

    vmid: int
    set: dict[str, str] = field(default_factory=dict)
    delete: tuple[str, ...] = ()
    revert: tuple[str, ...] = ()
    force: bool = False
    digest: str | None = None
    skiplock: bool = False
    secrets: dict[str, str] = field(default_factory=dict, metadata={"secret": True})

    def subject(self) -> str:
        return str(self.vmid)

    def locks(self) -> tuple[str, ...]:
        return (guest_lock(self.vmid),)

    def check(self, ctx: NodeContext) -> None:
        """Raises `NotFound`, `Locked`, `Conflict`, or `ParameterError` for drives that cannot be."""
        stored = read_guest(ctx.store, self.vmid, kind="qemu", node=ctx.node)
        config = stored.record.config
        if self.digest is not None and self.digest != config.digest():
            raise Conflict
        if self.delete != ("lock",):
            check_lock(config, skip=self.skiplock)
        for key, text in self.set.items():
            if names_volume(key):
                check_drive(ctx, self.vmid, parse_drive(key, text))
        both = {*self.set, *self.secrets} & {*self.delete}
        clash = dict.fromkeys(both, "cannot be set and deleted in one request")
        if clash:
            raise ParameterError(clash)

    def run(self, ctx: NodeContext, task: TaskHandle) -> None:
        """Writes the change as pending, then lets each part of it take effect that can."""
        self.check(ctx)
        stored = read_guest(ctx.store, self.vmid, kind="qemu", node=ctx.node)
        wanted = dict(self.secrets)
        for key, text in self.set.items():
            if is_drive(key):
                wanted[key] = make_drive(ctx, task, self.vmid, parse_drive(key, text))
            else:
                wanted[key] = with_mac(ctx, key, text)
        config = keep_volumes(self.vmid, stored.record.config, stored.record.config.revert(self.revert))
        boot = config.apply_pending().options.get("boot")
        if boot is not None and "boot" not in {*wanted, *self.delete}:
            wanted["boot"] = boot_without(boot, self.delete) or ""
        deletes = dict.fromkeys(self.delete, self.force)
        config = keep_volumes(self.vmid, config, config.with_pending(wanted, deletes))
        for key in self.delete:
            if stored.record.config.get(key) is None and key not in stored.record.config.pending:
                task.log(f"cannot delete '{key}' - not set in current configuration")
        task.step("pending")
        lost = lost_media(self.vmid, stored.record.config, config)
        for volume in lost:
            task.before("guest.drop_volume", vmid=self.vmid, volume=volume)
        stored = put(ctx, stored, config)
        for volume in lost:
            drop_volume(ctx, task.log, vmid=self.vmid, volume=volume)
        task.commit()
        running = ctx.machines.find(self.vmid) is not None
        if not running:
            apply_all(ctx, task, stored)
        else:
            apply_hot(ctx, task, stored, apply_live)
        refresh_or_warn(ctx, task, self.vmid)


def change_summary(set_: Mapping[str, str], delete: tuple[str, ...]) -> str:
    """The keys of a change, for its audit line."""
    return " ".join([*(f"+{key}" for key in sorted(set_)), *(f"-{key}" for key in delete)])
