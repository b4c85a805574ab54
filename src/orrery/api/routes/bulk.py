# SPDX-License-Identifier: AGPL-3.0-or-later
"""Starting, stopping and suspending many guests of a node with one call."""

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field

from orrery.access.rules import Everyone
from orrery.api.call import Call
from orrery.api.endpoint import endpoint
from orrery.api.manners import Flag, Format, Int, ListOf
from orrery.api.parameters import Boolean, NodeParams
from orrery.errors import ParameterError
from orrery.operations.guest_bulk import STOP_SECONDS, StartGuests, StopGuests, SuspendGuests

NODE = "/nodes/{node}"


class Bulk(NodeParams):
    """Which guests, and how many at once."""

    vms: Annotated[list[str], ListOf(Format("pve-vmid"), doc="Only these guests; without it all that you may.")] = (
        Field(default=[])
    )
    max_workers: Annotated[int, Int(minimum=1, maximum=64, doc="How many at once.")] | None = None


class StartAll(Bulk):
    """Which guests to start."""

    force: Boolean = Field(default=False, description="Also those that do not start with the host.")


class StopAll(Bulk):
    """Which guests to stop, and how patiently."""

    force_stop: Annotated[bool, Flag(doc="Stop guests that have not shut down in time.")] = True
    timeout: Annotated[int, Int(minimum=0, maximum=7200, doc="Seconds for each guest to shut down.")] = STOP_SECONDS


@endpoint("POST", NODE + "/startall", params=StartAll, permission=Everyone(), returns=str, task=True, proxy="node")
def start_all(call: Call, p: StartAll) -> Any:
    """Start guests in their order, those without one last, a few at once."""
    return call.start(StartGuests(chosen(call, p.vms), p.max_workers or 0, force=p.force))


@endpoint("POST", NODE + "/stopall", params=StopAll, permission=Everyone(), returns=str, task=True, proxy="node")
def stop_all(call: Call, p: StopAll) -> Any:
    """Shut guests down in the reverse of the order in which they start."""
    return call.start(StopGuests(chosen(call, p.vms), p.max_workers or 0, timeout=p.timeout, force=p.force_stop))


@endpoint("POST", NODE + "/suspendall", params=Bulk, permission=Everyone(), returns=str, task=True, proxy="node")
def suspend_all(call: Call, p: Bulk) -> Any:
    """Suspend running guests."""
    return call.start(SuspendGuests(chosen(call, p.vms), p.max_workers or 0))


def chosen(call: Call, vms: Sequence[str]) -> tuple[int, ...] | None:
    """The guests that are asked for; None for all. Whoever may not power every guest names those that they may.

    Raises `Forbidden`, and `ParameterError` for a guest that is named twice.
    """
    numbers = tuple(int(vmid) for vmid in vms)
    if len(set(numbers)) != len(numbers):
        raise ParameterError({"vms": "a guest is named twice"})
    if not call.allowed("/vms", "VM.PowerMgmt"):
        if not numbers:
            call.require("/vms", "VM.PowerMgmt")
        for vmid in numbers:
            call.require(f"/vms/{vmid}", "VM.PowerMgmt")
    return numbers or None
