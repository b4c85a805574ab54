# SPDX-License-Identifier: AGPL-3.0-or-later
"""The configuration of virtual machines: reading it, what is pending, changing it, and its disks."""

from typing import Annotated, Any

from pydantic import Field

from orrery.access.rules import Perm
from orrery.api.call import Call
from orrery.api.cloudinitoptions import judged_secrets
from orrery.api.endpoint import endpoint
from orrery.api.guestconfig import (
    AUDIT,
    DISK,
    ChangeExtras,
    ReadConfig,
    changed_options,
    config_of,
    finish,
    judged_change,
    pending_rows,
    refuse_faults,
    shown_config,
)
from orrery.api.guestfamily import MACHINES
from orrery.api.guestparams import guest_params
from orrery.api.guestrights import check_options, check_space, refuse_skiplock
from orrery.api.manners import Enum, Flag, Format, Int, ListOf, Pattern
from orrery.api.parameters import Boolean, Digest, GuestParams, StorageId, Vmid
from orrery.api.routes.qemu import GUEST
from orrery.errors import NotSupported, ParameterError
from orrery.model.machine import boot_without
from orrery.operations.guest_change import ChangeMachine, change_summary
from orrery.operations.guest_disk import MoveDisk, ResizeDisk

CONFIG = GUEST + "/config"
CHANGE = Perm(
    "/vms/{vmid}",
    tuple(
        f"VM.Config.{what}" for what in ("Disk", "CDROM", "CPU", "Memory", "Network", "HWType", "Options", "Cloudinit")
    ),
    any=True,
)
BUSES = {"ide": 4, "scsi": 31, "virtio": 16, "sata": 6}
DRIVES = tuple(f"{bus}{index}" for bus, count in BUSES.items() for index in range(count))
ALL_DRIVES = (*DRIVES, "efidisk0", "tpmstate0")
MOVABLE = (*ALL_DRIVES, *(f"unused{index}" for index in range(256)))


class MachineChangeExtras(ChangeExtras):
    """What a change takes besides the machine's options."""

    force: Annotated[bool, Flag(requires="delete")] = Field(
        default=False, description="Remove the volumes of deleted disks for good."
    )
    skiplock: Boolean = Field(default=False, description="Ignore the configuration's lock; root@pam only.")


class AsyncExtras(MachineChangeExtras):
    """What the asynchronous change takes as well."""

    background_delay: Annotated[int, Int(minimum=1, maximum=30, doc="Seconds to wait for its end.")] | None = Field(
        default=None, alias="background_delay"
    )
    import_working_storage: StorageId | None = Field(default=None, description="Storage for extracted images.")


ChangeParams = guest_params("ChangeMachineParams", MachineChangeExtras, MACHINES.table)
AsyncChangeParams = guest_params("AsyncChangeMachineParams", AsyncExtras, MACHINES.table)


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


@endpoint("GET", CONFIG, params=ReadConfig, permission=AUDIT, returns=dict[str, Any], proxy="node")
def read_config(call: Call, p: ReadConfig) -> dict[str, Any]:
    """The machine's options, those that are pending included unless only current ones are asked for."""
    return shown_config(call, MACHINES, p)


@endpoint("GET", GUEST + "/pending", params=GuestParams, permission=AUDIT, returns=list[dict[str, Any]], proxy="node")
def read_pending(call: Call, p: GuestParams) -> list[dict[str, Any]]:
    """Every option with its current value, and what waits for the next start."""
    return pending_rows(call, MACHINES, p.vmid)


def change(call: Call, p: Any) -> ChangeMachine:
    """The change that a request asks for, after every judgement of it."""
    refuse_skiplock(call, p.skiplock)
    config = config_of(call, MACHINES, p.vmid)
    judged = judged_change(call, MACHINES, config, p, {"cdrom": "ide2"})
    after = changed_options(config, judged)
    if "boot" in after and "boot" not in judged.options:
        after["boot"] = boot_without(after["boot"], judged.deletes) or ""
    refuse_faults(MACHINES.faults(after))
    plain, secrets = judged_secrets(call, judged.options, after)
    call.audit(change_summary(judged.options, judged.deletes))
    return ChangeMachine(
        *(p.vmid, plain, judged.deletes, judged.reverts),
        secrets=secrets,
        force=p.force,
        digest=p.digest,
        skiplock=p.skiplock,
    )


@endpoint("PUT", CONFIG, params=ChangeParams, permission=CHANGE, returns=None, proxy="node", waits=True)
def change_config(call: Call, p: Any) -> None:
    """Change options and wait until it is done."""
    finish(call, change(call, p))


@endpoint("POST", CONFIG, params=AsyncChangeParams, permission=CHANGE, returns=str, task=True, proxy="node", waits=True)
def change_config_async(call: Call, p: Any) -> Any:
    """Change options as a task."""
    if p.import_working_storage is not None:
        raise NotSupported("parameter 'import-working-storage' is not supported yet")
    return call.start(change(call, p), background_delay=p.background_delay or 0)


@endpoint("PUT", GUEST + "/unlink", params=Unlink, permission=DISK, returns=None, proxy="node", waits=True)
def unlink(call: Call, p: Unlink) -> None:
    """Detach disks; with force their volumes are removed."""
    config = config_of(call, MACHINES, p.vmid)
    known = {*config.options, *config.pending}
    if unknown := [key for key in p.idlist if key not in known]:
        raise ParameterError({"idlist": f"the machine has no '{unknown[0]}'"})
    if others := [key for key in p.idlist if key not in MOVABLE]:
        raise ParameterError({"idlist": f"'{others[0]}' is not a disk"})
    check_options(call, MACHINES, p.vmid, None, dict.fromkeys(p.idlist), config.current())
    finish(call, ChangeMachine(p.vmid, {}, tuple(p.idlist), force=p.force))


@endpoint("PUT", GUEST + "/resize", params=Resize, permission=DISK, returns=str, task=True, proxy="node")
def resize(call: Call, p: Resize) -> Any:
    """Grow a disk, also while the machine runs."""
    refuse_skiplock(call, p.skiplock)
    operation = ResizeDisk(p.vmid, p.disk, p.size, digest=p.digest, skiplock=p.skiplock)
    check_space(call, operation.storage(config_of(call, MACHINES, p.vmid)))
    return call.start(operation)


@endpoint("POST", GUEST + "/move_disk", params=Move, permission=DISK, returns=str, task=True, proxy="node")
def move_disk(call: Call, p: Move) -> Any:
    """Move a disk to another storage or format, also while the machine runs."""
    for name in ("target_vmid", "target_disk", "target_digest"):
        if getattr(p, name) is not None:
            raise NotSupported(f"parameter '{name.replace('_', '-')}' is not supported yet")
    if p.storage is None:
        raise ParameterError({"storage": "property is missing and it is not optional"})
    check_space(call, p.storage)
    operation = MoveDisk(p.vmid, p.disk, p.storage, p.format, delete=p.delete, digest=p.digest, limit=p.bwlimit)
    return call.start(operation)
