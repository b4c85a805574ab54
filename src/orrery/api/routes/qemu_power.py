# SPDX-License-Identifier: AGPL-3.0-or-later
"""Power of virtual machines: every verb is a task."""

from typing import Annotated, Any

from pydantic import Field

from orrery.api.call import Call
from orrery.api.endpoint import endpoint
from orrery.api.guestpower import POWER, SkipLock, Timeout, overrule_shutdown
from orrery.api.guestrights import refuse_skiplock
from orrery.api.manners import Format, Text
from orrery.api.parameters import Boolean, GuestParams
from orrery.errors import NotSupported
from orrery.operations.guest_power import (
    RebootMachine,
    ResetMachine,
    ResumeMachine,
    ShutdownMachine,
    StartMachine,
    StopMachine,
    SuspendMachine,
)

STATUS = "/nodes/{node}/qemu/{vmid}/status"
KeepActive = Field(default=False, alias="keepActive", description="Leave storages active; nothing to do here.")


class Start(GuestParams):
    """How to start."""

    skiplock: Boolean = SkipLock
    timeout: Timeout | None = None
    machine: Annotated[str, Text(doc="Start with this machine type, root@pam only.")] | None = None
    force_cpu: Annotated[str, Text(doc="Start with this processor model, for migration.")] | None = None
    migratedfrom: Annotated[str, Format("pve-node", doc="Source of an incoming migration.")] | None = None
    migration_network: Annotated[str, Text(doc="Network of a migration.")] | None = Field(
        default=None, alias="migration_network"
    )
    migration_type: Annotated[str, Text(pattern="secure|insecure", doc="Channel of a migration.")] | None = Field(
        default=None, alias="migration_type"
    )
    nets_host_mtu: Annotated[str, Text(doc="MTU of the cards, for migration.")] | None = None
    stateuri: Annotated[str, Text(max_length=128, doc="Start from a saved state.")] | None = None
    targetstorage: Annotated[str, Text(doc="Map of storages, for migration.")] | None = None
    with_conntrack_state: Boolean = Field(default=False, description="Bring along connection tracking, for migration.")


class Stop(GuestParams):
    """How to stop."""

    skiplock: Boolean = SkipLock
    timeout: Timeout | None = None
    keep_active: Boolean = KeepActive
    migratedfrom: Annotated[str, Format("pve-node", doc="Source of an incoming migration.")] | None = None
    overrule_shutdown: Boolean = Field(default=False, description="End shutdown tasks of the guest that still wait.")


class Shutdown(GuestParams):
    """How to shut down."""

    skiplock: Boolean = SkipLock
    timeout: Timeout | None = None
    force_stop: Boolean = Field(default=False, alias="forceStop", description="Stop it if it has not ended in time.")
    keep_active: Boolean = KeepActive


class Reboot(GuestParams):
    """How to reboot."""

    timeout: Timeout | None = None


class Suspend(GuestParams):
    """How to suspend."""

    skiplock: Boolean = SkipLock
    todisk: Boolean = Field(default=False, description="Save the memory and end the machine.")
    statestorage: (
        Annotated[str, Format("pve-storage-id", requires="todisk", doc="Where to save the memory.")] | None
    ) = None


class SkipLockOnly(GuestParams):
    """Verbs without options."""

    skiplock: Boolean = SkipLock


class Resume(SkipLockOnly):
    """How to resume."""

    nocheck: Boolean = Field(default=False, description="For migration; nothing to do here.")


def refuse_migration(p: Start) -> None:
    """Raises `NotSupported` by name for what only an incoming migration or a saved state needs."""
    for name in ("migratedfrom", "migration_network", "migration_type", "nets_host_mtu", "stateuri", "targetstorage"):
        if getattr(p, name) is not None:
            raise NotSupported(f"parameter '{name.replace('_', '-')}' is not supported yet: there is no migration")
    if p.with_conntrack_state:
        raise NotSupported("parameter 'with-conntrack-state' is not supported yet: there is no migration")
    for name in ("machine", "force_cpu"):
        if getattr(p, name) is not None:
            raise NotSupported(
                f"parameter '{name.replace('_', '-')}' is not supported yet: set it in the configuration"
            )


@endpoint("POST", STATUS + "/start", params=Start, permission=POWER, returns=str, task=True, proxy="node")
def start(call: Call, p: Start) -> Any:
    """Start the machine."""
    refuse_skiplock(call, p.skiplock)
    refuse_migration(p)
    return call.start(StartMachine(p.vmid, skiplock=p.skiplock, timeout=p.timeout))


@endpoint("POST", STATUS + "/stop", params=Stop, permission=POWER, returns=str, task=True, proxy="node")
def stop(call: Call, p: Stop) -> Any:
    """Stop the machine at once, like pulling the plug."""
    refuse_skiplock(call, p.skiplock)
    if p.migratedfrom is not None:
        raise NotSupported("parameter 'migratedfrom' is not supported yet: there is no migration")
    if p.overrule_shutdown:
        overrule_shutdown(call, p.vmid, ShutdownMachine.kind)
    return call.start(StopMachine(p.vmid, skiplock=p.skiplock, timeout=p.timeout))


@endpoint("POST", STATUS + "/shutdown", params=Shutdown, permission=POWER, returns=str, task=True, proxy="node")
def shutdown(call: Call, p: Shutdown) -> Any:
    """Ask the system inside to shut down, by its agent or by the power button."""
    refuse_skiplock(call, p.skiplock)
    return call.start(ShutdownMachine(p.vmid, skiplock=p.skiplock, timeout=p.timeout, force=p.force_stop))


@endpoint("POST", STATUS + "/reboot", params=Reboot, permission=POWER, returns=str, task=True, proxy="node")
def reboot(call: Call, p: Reboot) -> Any:
    """Shut down and start again; pending changes take effect."""
    return call.start(RebootMachine(p.vmid, timeout=p.timeout))


@endpoint("POST", STATUS + "/reset", params=SkipLockOnly, permission=POWER, returns=str, task=True, proxy="node")
def reset(call: Call, p: SkipLockOnly) -> Any:
    """Reset the machine, like its reset button."""
    refuse_skiplock(call, p.skiplock)
    return call.start(ResetMachine(p.vmid, skiplock=p.skiplock))


@endpoint("POST", STATUS + "/suspend", params=Suspend, permission=POWER, returns=str, task=True, proxy="node")
def suspend(call: Call, p: Suspend) -> Any:
    """Halt the processors; memory stays where it is."""
    refuse_skiplock(call, p.skiplock)
    if p.todisk:
        raise NotSupported("parameter 'todisk' is not supported yet")
    return call.start(SuspendMachine(p.vmid, skiplock=p.skiplock))


@endpoint("POST", STATUS + "/resume", params=Resume, permission=POWER, returns=str, task=True, proxy="node")
def resume(call: Call, p: Resume) -> Any:
    """Let the processors go on."""
    refuse_skiplock(call, p.skiplock)
    return call.start(ResumeMachine(p.vmid, skiplock=p.skiplock))
