# SPDX-License-Identifier: AGPL-3.0-or-later
"""Changing a container's options: what can take effect does so at once, the rest is pending until the next start."""

from dataclasses import dataclass, field
from typing import ClassVar

from orrery.errors import Conflict, ParameterError
from orrery.model.container import check_container, fixed_faults, is_mount
from orrery.operations.container_create import with_hwaddr
from orrery.operations.container_live import apply_live
from orrery.operations.container_mounts import check_mount, make_mount, names_volume
from orrery.operations.context import NodeContext
from orrery.operations.guest_lock import check_lock, guest_lock
from orrery.operations.guest_pending import apply_all, apply_hot, keep_volumes, put
from orrery.store.guests import read_guest
from orrery.tasks.operation import TaskHandle
from orrery.tasks.registry import operation


@operation
@dataclass(frozen=True)
class ChangeContainer:
    """Sets, deletes and reverts options of container `vmid`; `options` holds validated, canonical texts.

    A deleted mount point's volume becomes an unused one; deleting an unused one removes it. `digest` is that of the
    configuration on which the caller based the change.
    """

    kind: ClassVar[str] = "vzconfig"

    vmid: int
    options: dict[str, str] = field(default_factory=dict)
    deletes: tuple[str, ...] = ()
    reverts: tuple[str, ...] = ()
    digest: str | None = None
    skiplock: bool = False

    def subject(self) -> str:
        return str(self.vmid)

    def locks(self) -> tuple[str, ...]:
        return (guest_lock(self.vmid),)

    def check(self, ctx: NodeContext) -> None:
        """Raises `NotFound`, `Locked`, `Conflict`, or `ParameterError` for what the container cannot be."""
        config = read_guest(ctx.store, self.vmid, kind="lxc", node=ctx.node).record.config
        if self.digest is not None and self.digest != config.digest():
            raise Conflict
        if self.deletes != ("lock",):
            check_lock(config, kind="lxc", skip=self.skiplock)
        clash = {key: "cannot be set and deleted in one request" for key in self.deletes if key in self.options}
        changes: dict[str, str | None] = {**self.options, **dict.fromkeys(self.deletes)}
        if faults := clash or fixed_faults(changes, config.options):
            raise ParameterError(faults)
        for key, text in self.options.items():
            if names_volume(key):
                check_mount(ctx, self.vmid, key, text)
        after = config.revert(self.reverts).with_pending(self.options, dict.fromkeys(self.deletes, False))
        faults = check_container(after.apply_pending().options)
        if relevant := {key: text for key, text in faults.items() if key in self.options}:
            raise ParameterError(relevant)

    def run(self, ctx: NodeContext, task: TaskHandle) -> None:
        """Writes the change as pending, then lets each part of it take effect that can."""
        self.check(ctx)
        stored = read_guest(ctx.store, self.vmid, kind="lxc", node=ctx.node)
        before = stored.record.config
        wanted: dict[str, str] = {}
        for key, text in self.options.items():
            if is_mount(key):
                wanted[key] = make_mount(ctx, task, self.vmid, key, text)
            else:
                wanted[key] = with_hwaddr(ctx, key, text)
        config = keep_volumes(self.vmid, before, before.revert(self.reverts))
        config = keep_volumes(self.vmid, config, config.with_pending(wanted, dict.fromkeys(self.deletes, False)))
        for key in self.deletes:
            if before.get(key) is None and key not in before.pending:
                task.log(f"cannot delete '{key}' - not set in current configuration")
        task.step("pending")
        stored = put(ctx, stored, config)
        task.commit()
        if ctx.containers.find(self.vmid) is None:
            apply_all(ctx, task, stored)
        else:
            apply_hot(ctx, task, stored, apply_live)
            if read_guest(ctx.store, self.vmid, kind="lxc", node=ctx.node).record.config.has_pending():
                ctx.containers.restart_afresh(self.vmid)  # so that a restart from inside is a next start too
