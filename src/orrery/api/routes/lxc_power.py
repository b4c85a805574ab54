# SPDX-License-Identifier: AGPL-3.0-or-later
"""Power of containers: every verb is a task."""

from typing import Any

from pydantic import Field

from orrery.api.call import Call
from orrery.api.endpoint import endpoint
from orrery.api.guestpower import POWER, SkipLock, Timeout, overrule_shutdown
from orrery.api.guestrights import refuse_skiplock
from orrery.api.parameters import Boolean, GuestParams
from orrery.api.routes.lxc import GUEST
from orrery.operations.container_power import (
    RebootContainer,
    ResumeContainer,
    ShutdownContainer,
    StartContainer,
    StopContainer,
    SuspendContainer,
)

STATUS = GUEST + "/status"


class Start(GuestParams):
    """How to start."""

    debug: Boolean = Field(default=False, description="Write a detailed log of the start.")
    skiplock: Boolean = SkipLock


class Stop(GuestParams):
    """How to stop."""

    overrule_shutdown: Boolean = Field(default=False, description="End shutdown tasks of the guest that still wait.")
    skiplock: Boolean = SkipLock


class Shutdown(GuestParams):
    """How to shut down."""

    force_stop: Boolean = Field(default=False, alias="forceStop", description="Stop it if it has not ended in time.")
    timeout: Timeout = 60


class Reboot(GuestParams):
    """How to reboot."""

    timeout: Timeout | None = None


@endpoint("POST", STATUS + "/start", params=Start, permission=POWER, returns=str, task=True, proxy="node")
def start_container(call: Call, p: Start) -> Any:
    """Start the container."""
    refuse_skiplock(call, p.skiplock)
    return call.start(StartContainer(p.vmid, skiplock=p.skiplock, debug=p.debug))


@endpoint("POST", STATUS + "/stop", params=Stop, permission=POWER, returns=str, task=True, proxy="node")
def stop_container(call: Call, p: Stop) -> Any:
    """Stop the container at once: everything in it is killed."""
    refuse_skiplock(call, p.skiplock)
    if p.overrule_shutdown:
        overrule_shutdown(call, p.vmid, ShutdownContainer.kind)
    return call.start(StopContainer(p.vmid, skiplock=p.skiplock))


@endpoint("POST", STATUS + "/shutdown", params=Shutdown, permission=POWER, returns=str, task=True, proxy="node")
def shutdown_container(call: Call, p: Shutdown) -> Any:
    """Ask the container's system to shut down."""
    return call.start(ShutdownContainer(p.vmid, timeout=p.timeout, force=p.force_stop))


@endpoint("POST", STATUS + "/reboot", params=Reboot, permission=POWER, returns=str, task=True, proxy="node")
def reboot_container(call: Call, p: Reboot) -> Any:
    """Shut down and start again; pending changes take effect."""
    return call.start(RebootContainer(p.vmid, timeout=p.timeout))


@endpoint("POST", STATUS + "/suspend", params=GuestParams, permission=POWER, returns=str, task=True, proxy="node")
def suspend_container(call: Call, p: GuestParams) -> Any:
    """Freeze the container's processes; its memory stays where it is."""
    return call.start(SuspendContainer(p.vmid))


@endpoint("POST", STATUS + "/resume", params=GuestParams, permission=POWER, returns=str, task=True, proxy="node")
def resume_container(call: Call, p: GuestParams) -> Any:
    """Let the container's processes go on."""
    return call.start(ResumeContainer(p.vmid))
