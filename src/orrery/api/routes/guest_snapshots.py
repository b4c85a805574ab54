# SPDX-License-Identifier: AGPL-3.0-or-later
"""Snapshots of guests: this version only lists those that a configuration came with."""

from typing import Any

from orrery.api.call import Call
from orrery.api.endpoint import endpoint
from orrery.api.guestconfig import AUDIT, snapshot_rows
from orrery.api.guestfamily import CONTAINERS, MACHINES
from orrery.api.parameters import GuestParams
from orrery.api.routes import lxc, qemu


@endpoint(
    "GET", qemu.GUEST + "/snapshot", params=GuestParams, permission=AUDIT, returns=list[dict[str, Any]], proxy="node"
)
def list_snapshots(call: Call, p: GuestParams) -> list[dict[str, Any]]:
    """The machine's snapshots, and last its present state, as clients expect it."""
    return snapshot_rows(call, MACHINES, p.vmid)


@endpoint(
    "GET", lxc.GUEST + "/snapshot", params=GuestParams, permission=AUDIT, returns=list[dict[str, Any]], proxy="node"
)
def list_container_snapshots(call: Call, p: GuestParams) -> list[dict[str, Any]]:
    """The container's snapshots, and last its present state, as clients expect it."""
    return snapshot_rows(call, CONTAINERS, p.vmid)
