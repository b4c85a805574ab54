# SPDX-License-Identifier: AGPL-3.0-or-later
"""Creating a virtual machine: its number is taken, then volumes are made, then the configuration is written whole."""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

from orrery.errors import Failure, OrreryError
from orrery.model.devices import default_boot_order
from orrery.model.guest import GuestConfig, GuestRecord
from orrery.model.machine import expand_indexed
from orrery.model.machine_properties import NIC, SMBIOS
from orrery.operations.cloudinit import refresh
from orrery.operations.context import NodeContext
from orrery.operations.drives import check_drive, drives, make_drive, names_volume, parse_drive
from orrery.operations.guest_lock import guest_lock
from orrery.operations.guest_number import LOCK, check_new, enter_pool, new_mac, reserve
from orrery.operations.guest_power import StartMachine
from orrery.store.guests import read_guest, write_guest
from orrery.tasks.operation import TaskHandle
from orrery.tasks.registry import operation


@operation
@dataclass(frozen=True)
class CreateMachine:
    """Creates machine `vmid` with validated, canonical `options`; enters it in `pool`, and starts it if asked.

    `secrets` are options whose values nobody else may see.
    """

    kind: ClassVar[str] = "qmcreate"

    vmid: int
    options: dict[str, str] = field(default_factory=dict)
    pool: str | None = None
    start: bool = False
    secrets: dict[str, str] = field(default_factory=dict, metadata={"secret": True})

    def subject(self) -> str:
        return str(self.vmid)

    def locks(self) -> tuple[str, ...]:
        return (guest_lock(self.vmid),)

    def check(self, ctx: NodeContext) -> None:
        """Raises `AlreadyExists`, `NotFound` for the pool, or `ParameterError` for drives that cannot be."""
        check_new(ctx, self.vmid, self.pool)
        for key, text in self.options.items():
            if names_volume(key):
                check_drive(ctx, self.vmid, parse_drive(key, text))

    def run(self, ctx: NodeContext, task: TaskHandle) -> None:
        """Makes the machine; a failure leaves neither volume nor number behind."""
        self.check(ctx)
        reserved, revision = reserve(ctx, task, self.vmid, "qemu")
        options = complete({**self.options, **self.secrets}, ctx)
        for drive in drives(self.options):
            options[drive.key] = make_drive(ctx, task, self.vmid, drive)
        enter_pool(ctx, task, self.vmid, self.pool)
        task.step("configuration")
        config = GuestConfig(options=options)
        task.before("cloudinit.forget", vmid=self.vmid)
        refresh(ctx, task, self.vmid, config, always=True)
        write_guest(ctx.store, replace(reserved, config=config), revision)
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
        values["macaddr"] = new_mac(ctx)
    return NIC.print(values)


def created(ctx: NodeContext, vmid: int) -> GuestRecord:
    """The machine on this node. Raises `NotFound`, or `Failure` while it is being created."""
    record = read_guest(ctx.store, vmid, kind="qemu", node=ctx.node).record
    if record.config.lock == LOCK:
        raise Failure(f"VM is locked ({LOCK})")
    return record
