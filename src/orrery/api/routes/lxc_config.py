# SPDX-License-Identifier: AGPL-3.0-or-later
"""The configuration of containers: reading it, what is pending, changing it, and their volumes."""

from typing import Annotated, Any

from pydantic import Field

from orrery.access.rules import Perm
from orrery.api.call import Call
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
from orrery.api.guestfamily import CONTAINERS
from orrery.api.guestparams import guest_params
from orrery.api.guestrights import check_space
from orrery.api.manners import Enum, Pattern, Real
from orrery.api.parameters import Boolean, Digest, GuestParams, StorageId, Vmid
from orrery.api.routes.lxc import GUEST
from orrery.errors import ParameterError
from orrery.model.container_options import MOUNT_POINTS, UNUSED
from orrery.operations.container_change import ChangeContainer
from orrery.operations.container_disk import MoveVolume, ResizeMount, owned_mount
from orrery.operations.guest_change import change_summary

CONFIG = GUEST + "/config"
CHANGE = Perm(
    "/vms/{vmid}",
    tuple(f"VM.Config.{what}" for what in ("Disk", "CPU", "Memory", "Network", "Options")),
    any=True,
)
MOUNTS = ("rootfs", *(f"mp{index}" for index in range(MOUNT_POINTS)))
MOVABLE = (*MOUNTS, *(f"unused{index}" for index in range(UNUSED)))

ChangeParams = guest_params("ChangeContainerParams", ChangeExtras, CONTAINERS.table)


class Resize(GuestParams):
    """Which volume to which size."""

    disk: Annotated[str, Enum(*MOUNTS, doc="The root file system or the mount point.")]
    size: Annotated[str, Pattern(r"\+?\d+(\.\d+)?[KMGT]?", doc="The new size, or with + what to add.")]
    digest: Digest | None = None


class Move(GuestParams):
    """Which volume to where."""

    volume: Annotated[str, Enum(*MOVABLE, doc="The volume.")]
    storage: StorageId | None = Field(default=None, description="Storage to move it to.")
    delete: Boolean = Field(default=False, description="Remove the original; otherwise it becomes an unused volume.")
    digest: Digest | None = None
    bwlimit: Annotated[float, Real(minimum=0, doc="Limit in KiB/s; 0 for none.")] | None = None
    target_vmid: Vmid | None = Field(default=None, description="Give the volume to this container.")
    target_volume: Annotated[str, Enum(*MOVABLE, doc="Its name there.")] | None = None
    target_digest: Digest | None = None


@endpoint("GET", CONFIG, params=ReadConfig, permission=AUDIT, returns=dict[str, Any], proxy="node")
def read_container_config(call: Call, p: ReadConfig) -> dict[str, Any]:
    """The container's options, those that are pending included unless only current ones are asked for."""
    return shown_config(call, CONTAINERS, p)


@endpoint("GET", GUEST + "/pending", params=GuestParams, permission=AUDIT, returns=list[dict[str, Any]], proxy="node")
def read_container_pending(call: Call, p: GuestParams) -> list[dict[str, Any]]:
    """Every option with its current value, and what waits for the next start."""
    return pending_rows(call, CONTAINERS, p.vmid)


@endpoint("PUT", CONFIG, params=ChangeParams, permission=CHANGE, returns=None, proxy="node", waits=True)
def change_container_config(call: Call, p: Any) -> None:
    """Change options and wait until it is done."""
    config = config_of(call, CONTAINERS, p.vmid)
    judged = judged_change(call, CONTAINERS, config, p)
    refuse_faults(CONTAINERS.faults(changed_options(config, judged)))
    call.audit(change_summary(judged.options, judged.deletes))
    finish(call, ChangeContainer(p.vmid, judged.options, judged.deletes, judged.reverts, digest=p.digest))


@endpoint("PUT", GUEST + "/resize", params=Resize, permission=DISK, returns=str, task=True, proxy="node")
def resize_mount(call: Call, p: Resize) -> Any:
    """Grow a volume, also while the container runs."""
    operation = ResizeMount(p.vmid, disk=p.disk, size=p.size, digest=p.digest)
    check_space(call, operation.storage(config_of(call, CONTAINERS, p.vmid)))
    return call.start(operation)


@endpoint("POST", GUEST + "/move_volume", params=Move, permission=DISK, returns=str, task=True, proxy="node")
def move_volume(call: Call, p: Move) -> Any:
    """Move a volume to another storage, or give it to another container."""
    if (p.storage is None) == (p.target_vmid is None):
        raise ParameterError({"storage": "either 'storage' or 'target-vmid' must be given, and only one of them"})
    if p.target_vmid is None:
        if given := [name for name in ("target_volume", "target_digest") if getattr(p, name) is not None]:
            name = given[0].replace("_", "-")
            raise ParameterError({"target-vmid": f"missing property - '{name}' requires this property"})
        check_space(call, str(p.storage))
    else:
        call.require(f"/vms/{p.target_vmid}", "VM.Config.Disk")
        mount = owned_mount(p.vmid, config_of(call, CONTAINERS, p.vmid), p.volume, "volume")
        check_space(call, str(mount.storage))
    operation = MoveVolume(
        p.vmid,
        volume=p.volume,
        storage=p.storage,
        delete=p.delete,
        digest=p.digest,
        target_vmid=p.target_vmid,
        target_volume=p.target_volume,
        target_digest=p.target_digest,
        bwlimit=None if p.bwlimit is None else round(p.bwlimit),
    )
    return call.start(operation)
