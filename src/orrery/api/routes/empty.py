# SPDX-License-Identifier: AGPL-3.0-or-later
"""Lists of things that this version cannot make, and of which there are therefore truthfully none.

Clients read them on every run and give up on an error. A method moves from here to its own module with the feature.
"""

from typing import Any

from orrery.access.rules import Everyone, Perm
from orrery.api.call import Call
from orrery.api.endpoint import endpoint
from orrery.api.parameters import NodeParams, NoParams, Params
from orrery.store.guests import read_guests

NOTHING: dict[str, str] = {
    "/cluster/replication": "Replication jobs: none in this version.",
    "/cluster/ha/resources": "Guests under high availability: none in this version.",
    "/cluster/ha/rules": "Rules of high availability: none in this version.",
    "/cluster/ha/groups": "Groups of high availability: none in this version.",
    "/cluster/backup": "Backup jobs: none in this version.",
}

NOTHING_OF_NODE: dict[str, str] = {
    "/nodes/{node}/replication": "Replication jobs of the node: none in this version.",
}


def _none(call: Call, p: Params) -> list[Any]:
    return []


for _path, _text in NOTHING.items():
    endpoint("GET", _path, params=NoParams, permission=Everyone(), returns=list[dict[str, Any]], description=_text)(
        _none
    )
for _path, _text in NOTHING_OF_NODE.items():
    endpoint(
        "GET",
        _path,
        params=NodeParams,
        permission=Everyone(),
        returns=list[dict[str, Any]],
        proxy="node",
        description=_text,
    )(_none)


@endpoint(
    "GET", "/cluster/config/qdevice", params=NoParams, permission=Perm("/", ("Sys.Audit",)), returns=dict[str, Any]
)
def read_qdevice(call: Call, p: NoParams) -> dict[str, Any]:
    """State of an external vote: none."""
    return {}


@endpoint(
    "GET", "/nodes/{node}/subscription", params=NodeParams, permission=Everyone(), returns=dict[str, Any], proxy="node"
)
def read_subscription(call: Call, p: NodeParams) -> dict[str, Any]:
    """There is nothing to subscribe to."""
    return {"status": "notfound", "message": "Orrery is free software and has no subscriptions"}


@endpoint(
    "GET", "/cluster/backup-info/not-backed-up", params=NoParams, permission=Everyone(), returns=list[dict[str, Any]]
)
def list_not_backed_up(call: Call, p: NoParams) -> list[dict[str, Any]]:
    """Guests that no backup job covers: while there are no jobs, every guest that the caller may see."""
    rows = []
    for guest in read_guests(call.services.store):
        record = guest.record
        if call.allowed(f"/vms/{record.vmid}", "VM.Audit"):
            row: dict[str, Any] = {"vmid": record.vmid, "type": record.kind}
            if name := record.config.options.get("name" if record.kind == "qemu" else "hostname"):
                row["name"] = name
            rows.append(row)
    return rows
