# SPDX-License-Identifier: AGPL-3.0-or-later
"""Creating a virtual machine: its number is taken, then volumes are made, then the configuration is written whole."""

import secrets
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

from orrery.access.pools import place_guest
from orrery.errors import Failure, NotFound, OrreryError
from orrery.model.devices import default_boot_order, random_mac
from orrery.model.guest import GuestConfig, GuestRecord
from orrery.model.machine import expand_indexed
from orrery.model.machine_properties import NIC, SMBIOS
from orrery.model.options import cluster_options
from orrery.operations.context import NodeContext
from orrery.operations.drives import check_drive, drives, make_drive, names_volume, parse_drive
from orrery.operations.guest_lock import guest_lock
from orrery.operations.guest_power import StartMachine
from orrery.store.documents import atomically, read_document
from orrery.store.guests import add_guest, find_guest, read_guest, remove_guest, taken, write_guest
from orrery.tasks.operation import TaskHandle
from orrery.tasks.registry import operation
from orrery.tasks.revert import Log, undo

LOCK = "create"


@operation
@dataclass(frozen=True)
class CreateMachine:
    """Creates machine `vmid` with validated, canonical `options`; enters it in `pool`, and starts it if asked."""

    kind: ClassVar[str] = "qmcreate"

    vmid: int
    options: dict[str, str] = field(default_factory=dict)
    pool: str | None = None
    start: bool = False

    def subject(self) -> str:
        return str(self.vmid)

    def locks(self) -> tuple[str, ...]:
        return (guest_lock(self.vmid),)

    def check(self, ctx: NodeContext) -> None:
        """Raises `AlreadyExists`, `NotFound` for the pool, or `ParameterError` for drives that cannot be."""
        if find_guest(ctx.store, self.vmid) is not None:
            raise taken(ctx.store, self.vmid)
        if self.pool is not None and read_document(ctx.store, f"/pools/{self.pool}") is None:
            raise NotFound(f"pool '{self.pool}' does not exist")
        for key, text in self.options.items():
            if names_volume(key):
                check_drive(ctx, self.vmid, parse_drive(key, text))

    def run(self, ctx: NodeContext, task: TaskHandle) -> None:
        """Makes the machine; a failure leaves neither volume nor number behind."""
        self.check(ctx)
        task.before("guest.forget", vmid=self.vmid)
        reserved = GuestRecord(self.vmid, "qemu", ctx.node, GuestConfig(options={"lock": LOCK}))
        revision = add_guest(ctx.store, reserved)
        options = complete(self.options, ctx)
        for drive in drives(self.options):
            options[drive.key] = make_drive(ctx, task, self.vmid, drive)
        if self.pool is not None:
            task.before("guest.unjoin_pool", vmid=self.vmid)
            atomically(ctx.store, lambda transaction: place_guest(transaction, self.vmid, self.pool))
        task.step("configuration")
        write_guest(ctx.store, replace(reserved, config=GuestConfig(options=options)), revision)
        task.commit()
        if self.start:
            try:
                StartMachine(self.vmid).start(ctx, task)
            except OrreryError as error:
                task.warn(f"the machine was created, but could not be started: {error.message}")


def complete(options: Mapping[str, str], ctx: NodeContext) -> dict[str, str]:
    """The options with what a new machine gets by itself: MAC addresses, a UUID, a generation id, its birth."""
    result = dict(options)
    for key, text in options.items():
        result[key] = with_mac(ctx, key, text)
    smbios = SMBIOS.parse(result.get("smbios1", ""), "smbios1")
    result["smbios1"] = SMBIOS.print({"uuid": str(uuid.uuid4()), **smbios})
    if result.get("vmgenid", "1") == "1":
        result["vmgenid"] = str(uuid.uuid4())
    elif result["vmgenid"] == "0":
        del result["vmgenid"]
    if "boot" not in result and "bootdisk" not in result and (order := default_boot_order(result)):
        result["boot"] = f"order={';'.join(order)}"
    result["meta"] = ctx.machines.creation_meta()
    return result


def with_mac(ctx: NodeContext, key: str, text: str) -> str:
    """A network card's option with a MAC address, drawn at random when it has none; other options as they are."""
    expanded = expand_indexed(key)
    if expanded is None or expanded[0] != "net":
        return text
    values = NIC.parse(text, key)
    if "macaddr" not in values:
        prefix = cluster_options(read_document(ctx.store, "/cluster/options") or {}).mac_prefix
        values["macaddr"] = random_mac(secrets.token_bytes(5), prefix)
    return NIC.print(values)


@undo("guest.unjoin_pool")
def unjoin_pool(ctx: NodeContext, log: Log, *, vmid: int) -> None:
    """Takes a guest that was not created whole out of its pool again."""
    found = find_guest(ctx.store, vmid)
    if found is None or found.record.config.lock == LOCK:
        atomically(ctx.store, lambda transaction: place_guest(transaction, vmid, None))


@undo("guest.forget")
def forget_guest(ctx: NodeContext, log: Log, *, vmid: int) -> None:
    """Frees a number that a failed creation had taken; a machine that was created whole stays."""
    found = find_guest(ctx.store, vmid)
    if found is None or found.record.node != ctx.node or found.record.config.lock != LOCK:
        return
    remove_guest(ctx.store, vmid, found.revision)
    log(f"freed the number {vmid}")


def created(ctx: NodeContext, vmid: int) -> GuestRecord:
    """The machine on this node. Raises `NotFound`, or `Failure` while it is being created."""
    record = read_guest(ctx.store, vmid, kind="qemu", node=ctx.node).record
    if record.config.lock == LOCK:
        raise Failure(f"VM is locked ({LOCK})")
    return record
