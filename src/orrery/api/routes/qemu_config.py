# SPDX-License-Identifier: AGPL-3.0-or-later
"""The configuration of virtual machines: reading it, what is pending, changing it, and its disks."""

from typing import Annotated, Any

from pydantic import Field

from orrery.access.rules import Perm
from orrery.api.call import Call
from orrery.api.endpoint import endpoint
from orrery.api.machineparams import machine_params
from orrery.api.machinerights import check_options, check_space
from orrery.api.manners import Enum, Flag, Format, Int, ListOf, Pattern
from orrery.api.parameters import Boolean, Digest, GuestParams, StorageId, Vmid
from orrery.api.routes.qemu import GUEST, checked_options
from orrery.errors import Failure, NotFound, NotSupported, ParameterError
from orrery.model.guest import GuestConfig
from orrery.model.machine import boot_without, check_machine, find_option, reply_value
from orrery.operations.guest_change import ChangeMachine, change_summary
from orrery.operations.guest_disk import MoveDisk, ResizeDisk
from orrery.store.guests import read_guest

CONFIG = GUEST + "/config"
AUDIT = Perm("/vms/{vmid}", ("VM.Audit",))
DISK = Perm("/vms/{vmid}", ("VM.Config.Disk",))
CHANGE = Perm(
    "/vms/{vmid}",
    tuple(
        f"VM.Config.{what}" for what in ("Disk", "CDROM", "CPU", "Memory", "Network", "HWType", "Options", "Cloudinit")
    ),
    any=True,
)
SYNCHRONOUS_SECONDS = 30
"""How long a synchronous change may take before its client is told to look at the task instead."""

BUSES = {"ide": 4, "scsi": 31, "virtio": 16, "sata": 6}
DRIVES = tuple(f"{bus}{index}" for bus, count in BUSES.items() for index in range(count))
ALL_DRIVES = (*DRIVES, "efidisk0", "tpmstate0")
MOVABLE = (*ALL_DRIVES, *(f"unused{index}" for index in range(256)))


class ReadConfig(GuestParams):
    """Which configuration."""

    current: Boolean = Field(default=False, description="What holds now, without what is pending.")
    snapshot: (
        Annotated[str, Format("pve-configid", max_length=40, doc="The configuration of this snapshot.")] | None
    ) = None


class ChangeExtras(GuestParams):
    """What a change takes besides the machine's options."""

    delete: Annotated[list[str], ListOf(Format("pve-configid"), doc="Options to remove.")] = Field(default=[])
    revert: Annotated[list[str], ListOf(Format("pve-configid"), doc="Options whose pending change to drop.")] = Field(
        default=[]
    )
    force: Annotated[bool, Flag(requires="delete")] = Field(
        default=False, description="Remove the volumes of deleted disks for good."
    )
    digest: Digest | None = None
    skiplock: Boolean = Field(default=False, description="Ignore the configuration's lock; root@pam only.")


class AsyncExtras(ChangeExtras):
    """What the asynchronous change takes as well."""

    background_delay: Annotated[int, Int(minimum=1, maximum=30, doc="Seconds to wait for its end.")] | None = Field(
        default=None, alias="background_delay"
    )
    import_working_storage: StorageId | None = Field(default=None, description="Storage for extracted images.")


ChangeParams = machine_params("ChangeMachineParams", ChangeExtras)
AsyncChangeParams = machine_params("AsyncChangeMachineParams", AsyncExtras)


class Unlink(GuestParams):
    """Which disks to detach."""

    idlist: Annotated[list[str], ListOf(Format("pve-configid"), doc="Disks to detach.")]
    force: Boolean = Field(default=False, description="Remove their volumes for good.")


class Resize(GuestParams):
    """Which disk to which size."""

    disk: Annotated[str, Enum(*ALL_DRIVES, doc="The disk.")]
    size: Annotated[str, Pattern(r"\+?\d+(\.\d+)?[KMGT]?", doc="The new size, or with + what to add.")]
    digest: Digest | None = None
    skiplock: Boolean = Field(default=False, description="Ignore the configuration's lock; root@pam only.")


class Move(GuestParams):
    """Which disk to where."""

    disk: Annotated[str, Enum(*MOVABLE, doc="The disk.")]
    storage: StorageId | None = Field(default=None, description="Where to.")
    format: Annotated[str, Enum("raw", "qcow2", "vmdk", doc="Its format there.")] | None = None
    delete: Boolean = Field(default=False, description="Remove the original; otherwise it becomes an unused disk.")
    digest: Digest | None = None
    bwlimit: Annotated[int, Int(minimum=0, doc="Limit in KiB/s.")] | None = None
    target_vmid: Vmid | None = Field(default=None, description="Give the disk to this machine.")
    target_disk: Annotated[str, Enum(*MOVABLE, doc="Its name there.")] | None = None
    target_digest: Digest | None = None


def config_of(call: Call, vmid: int) -> GuestConfig:
    """The configuration of a machine of this node. Raises `NotFound`."""
    return read_guest(call.services.store, vmid, kind="qemu", node=call.services.node).record.config


@endpoint("GET", CONFIG, params=ReadConfig, permission=AUDIT, returns=dict[str, Any], proxy="node")
def read_config(call: Call, p: ReadConfig) -> dict[str, Any]:
    """The machine's options, those that are pending included unless only current ones are asked for."""
    config = config_of(call, p.vmid)
    digest = config.digest()
    if p.snapshot is not None:
        if p.snapshot not in config.snapshots:
            raise NotFound(f"snapshot '{p.snapshot}' does not exist")
        section = config.snapshots[p.snapshot]
        config = GuestConfig(options=section.options, description=section.description)
    elif not p.current:
        config = config.apply_pending()
    shown = {key: reply_value(key, text) for key, text in config.current().items()}
    return {**shown, "digest": digest}


@endpoint("GET", GUEST + "/pending", params=GuestParams, permission=AUDIT, returns=list[dict[str, Any]], proxy="node")
def read_pending(call: Call, p: GuestParams) -> list[dict[str, Any]]:
    """Every option with its current value, and what waits for the next start."""
    config = config_of(call, p.vmid)
    current = config.current()
    rows: list[dict[str, Any]] = []
    for key in sorted({*current, *config.pending, *config.pending_deletes}):
        row: dict[str, Any] = {"key": key}
        if key in current:
            row["value"] = reply_value(key, current[key])
        if key in config.pending:
            row["pending"] = reply_value(key, config.pending[key])
        if key in config.pending_deletes:
            row["delete"] = 2 if config.pending_deletes[key] else 1
        rows.append(row)
    return [*rows, {"key": "digest", "value": config.digest()}]


def change(call: Call, p: Any) -> ChangeMachine:
    """The change that a request asks for, after every judgement of it."""
    if p.skiplock:
        call.require_root("Only root may use this option.")
    config = config_of(call, p.vmid)
    options = checked_options(call, p.options())
    deletes = ["ide2" if key == "cdrom" else key for key in p.delete]
    faults = {}
    if unknown := [key for key in deletes if find_option(key) is None and config.get(key) is None]:
        faults["delete"] = f"unknown option '{unknown[0]}'"
    if both := sorted({*deletes} & {*options}):
        faults["delete"] = f"you can't use '{both[0]}' and -delete {both[0]} at the same time"
    if faults:
        raise ParameterError(faults)
    check_options(call, p.vmid, None, {**options, **dict.fromkeys(deletes)}, config.current())
    check_options(call, p.vmid, None, dict.fromkeys(p.revert), dict(config.pending))
    after = {key: text for key, text in {**config.apply_pending().options, **options}.items() if key not in deletes}
    if "boot" in after and "boot" not in options:
        after["boot"] = boot_without(after["boot"], deletes) or ""
    if wrong := check_machine(after):
        raise ParameterError(wrong)
    call.audit(change_summary(options, tuple(deletes)))
    return ChangeMachine(
        p.vmid, options, tuple(deletes), tuple(p.revert), force=p.force, digest=p.digest, skiplock=p.skiplock
    )


@endpoint("PUT", CONFIG, params=ChangeParams, permission=CHANGE, returns=None, proxy="node", waits=True)
def change_config(call: Call, p: Any) -> None:
    """Change options and wait until it is done."""
    finish(call, change(call, p))


def finish(call: Call, operation: ChangeMachine) -> None:
    """Carries out a change and waits for its end. Raises `Failure` naming the task when it takes too long."""
    upid = call.start(operation, background_delay=SYNCHRONOUS_SECONDS)
    if upid is not None:
        raise Failure(f"the change is not done after {SYNCHRONOUS_SECONDS} seconds and goes on; look at task {upid}")


@endpoint("POST", CONFIG, params=AsyncChangeParams, permission=CHANGE, returns=str, task=True, proxy="node", waits=True)
def change_config_async(call: Call, p: Any) -> Any:
    """Change options as a task."""
    if p.import_working_storage is not None:
        raise NotSupported("parameter 'import-working-storage' is not supported yet")
    return call.start(change(call, p), background_delay=p.background_delay or 0)


@endpoint("PUT", GUEST + "/unlink", params=Unlink, permission=DISK, returns=None, proxy="node", waits=True)
def unlink(call: Call, p: Unlink) -> None:
    """Detach disks; with force their volumes are removed."""
    config = config_of(call, p.vmid)
    known = {*config.options, *config.pending}
    if unknown := [key for key in p.idlist if key not in known]:
        raise ParameterError({"idlist": f"the machine has no '{unknown[0]}'"})
    if others := [key for key in p.idlist if key not in MOVABLE]:
        raise ParameterError({"idlist": f"'{others[0]}' is not a disk"})
    check_options(call, p.vmid, None, dict.fromkeys(p.idlist), config.current())
    finish(call, ChangeMachine(p.vmid, {}, tuple(p.idlist), force=p.force))


@endpoint("PUT", GUEST + "/resize", params=Resize, permission=DISK, returns=str, task=True, proxy="node")
def resize(call: Call, p: Resize) -> Any:
    """Grow a disk, also while the machine runs."""
    if p.skiplock:
        call.require_root("Only root may use this option.")
    operation = ResizeDisk(p.vmid, p.disk, p.size, digest=p.digest, skiplock=p.skiplock)
    check_space(call, operation.storage(config_of(call, p.vmid)), p.disk)
    return call.start(operation)


@endpoint("POST", GUEST + "/move_disk", params=Move, permission=DISK, returns=str, task=True, proxy="node")
def move_disk(call: Call, p: Move) -> Any:
    """Move a disk to another storage or format, also while the machine runs."""
    for name in ("target_vmid", "target_disk", "target_digest"):
        if getattr(p, name) is not None:
            raise NotSupported(f"parameter '{name.replace('_', '-')}' is not supported yet")
    if p.storage is None:
        raise ParameterError({"storage": "property is missing and it is not optional"})
    check_space(call, p.storage, "storage")
    operation = MoveDisk(p.vmid, p.disk, p.storage, p.format, delete=p.delete, digest=p.digest, limit=p.bwlimit)
    return call.start(operation)
