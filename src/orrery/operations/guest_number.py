# SPDX-License-Identifier: AGPL-3.0-or-later
"""How a new guest gets its number, its pool and its MAC addresses, and how a failed creation gives them back."""

import secrets

from orrery.access.pools import place_guest
from orrery.errors import NotFound
from orrery.model.devices import random_mac
from orrery.model.guest import GuestConfig, GuestKind, GuestRecord
from orrery.model.options import cluster_options
from orrery.operations.context import NodeContext
from orrery.store.documents import atomically, read_document
from orrery.store.guests import add_guest, find_guest, remove_guest, taken
from orrery.tasks.operation import TaskHandle
from orrery.tasks.revert import Log, undo

LOCK = "create"
"""What stands as `lock` in the configuration of a guest that is not there as a whole yet."""


def check_new(ctx: NodeContext, vmid: int, pool: str | None) -> None:
    """Raises `AlreadyExists` for a number that is taken, `NotFound` for a pool that does not exist."""
    if find_guest(ctx.store, vmid) is not None:
        raise taken(ctx.store, vmid)
    if pool is not None and read_document(ctx.store, f"/pools/{pool}") is None:
        raise NotFound(f"pool '{pool}' does not exist")


def reserve(ctx: NodeContext, task: TaskHandle, vmid: int, kind: GuestKind) -> tuple[GuestRecord, int]:
    """Takes the number for a guest that is being made, given back if the task fails; the record and its revision."""
    task.before("guest.forget", vmid=vmid)
    record = GuestRecord(vmid, kind, ctx.node, GuestConfig(options={"lock": LOCK}))
    return record, add_guest(ctx.store, record)


def enter_pool(ctx: NodeContext, task: TaskHandle, vmid: int, pool: str | None) -> None:
    """Makes the new guest a member of its pool, if it is to be of one."""
    if pool is not None:
        task.before("guest.unjoin_pool", vmid=vmid)
        atomically(ctx.store, lambda transaction: place_guest(transaction, vmid, pool))


def new_mac(ctx: NodeContext) -> str:
    """A MAC address drawn at random, with the prefix that the administrators have chosen."""
    prefix = cluster_options(read_document(ctx.store, "/cluster/options") or {}).mac_prefix
    return random_mac(secrets.token_bytes(5), prefix)


@undo("guest.unjoin_pool")
def unjoin_pool(ctx: NodeContext, log: Log, *, vmid: int) -> None:
    """Takes a guest that was not created whole out of its pool again."""
    found = find_guest(ctx.store, vmid)
    if found is None or found.record.config.lock == LOCK:
        atomically(ctx.store, lambda transaction: place_guest(transaction, vmid, None))


@undo("guest.forget")
def forget_guest(ctx: NodeContext, log: Log, *, vmid: int) -> None:
    """Frees a number that a failed creation had taken; a guest that was created whole stays."""
    found = find_guest(ctx.store, vmid)
    if found is None or found.record.node != ctx.node or found.record.config.lock != LOCK:
        return
    remove_guest(ctx.store, vmid, found.revision)
    log(f"freed the number {vmid}")
