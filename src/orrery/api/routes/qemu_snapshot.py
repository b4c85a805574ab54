# SPDX-License-Identifier: AGPL-3.0-or-later
"""Snapshots of virtual machines: this version only lists those that a configuration came with."""

from typing import Any

from orrery.access.rules import Perm
from orrery.api.call import Call
from orrery.api.endpoint import endpoint
from orrery.api.parameters import GuestParams
from orrery.api.routes.qemu import GUEST
from orrery.store.guests import read_guest


@endpoint(
    "GET",
    GUEST + "/snapshot",
    params=GuestParams,
    permission=Perm("/vms/{vmid}", ("VM.Audit",)),
    returns=list[dict[str, Any]],
    proxy="node",
)
def list_snapshots(call: Call, p: GuestParams) -> list[dict[str, Any]]:
    """The machine's snapshots, and last its present state, as clients expect it."""
    services = call.services
    config = read_guest(services.store, p.vmid, kind="qemu", node=services.node).record.config
    rows: list[dict[str, Any]] = []
    for name, section in sorted(config.snapshots.items()):
        row: dict[str, Any] = {"name": name, "description": section.description}
        if section.taken is not None:
            row["snaptime"] = section.taken
        if section.parent is not None:
            row["parent"] = section.parent
        if "vmstate" in section.options:
            row["vmstate"] = 1
        rows.append(row)
    current: dict[str, Any] = {
        "name": "current",
        "description": "You are here!",
        "digest": config.digest(),
        "running": int(services.collector.sample(p.vmid) is not None),
    }
    if parent := config.get("parent"):
        current["parent"] = parent
    return [*rows, current]
