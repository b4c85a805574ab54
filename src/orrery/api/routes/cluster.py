# SPDX-License-Identifier: AGPL-3.0-or-later
"""Views of the whole: resources, status, the next free number, the log of changes."""

from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import Field

from orrery.access.rules import Everyone, Perm
from orrery.api.call import Call
from orrery.api.endpoint import endpoint
from orrery.api.guestrights import visible_guests
from orrery.api.guestrows import resource_row
from orrery.api.manners import Enum, Int
from orrery.api.parameters import NoParams, Params, Vmid
from orrery.api.routes.nodes import node_row
from orrery.errors import Failure, ParameterError
from orrery.model.options import cluster_options
from orrery.store.documents import read_document, read_documents
from orrery.store.guests import find_guest, read_guests
from orrery.system import cgroup

LOG_DEFAULT = 50


class Resources(Params):
    """Which resources to list."""

    type: Annotated[str, Enum("vm", "storage", "node", "sdn", doc="Only resources of this kind.")] | None = None


class NextId(Params):
    """A number to try."""

    vmid: Vmid | None = Field(default=None, description="Answer this number if it is free, else an error.")


class ReadLog(Params):
    """How much of the log to read."""

    max: Annotated[int, Int(minimum=1, doc="Entries at most.")] = LOG_DEFAULT


@endpoint("GET", "/cluster/resources", params=Resources, permission=Everyone(), returns=list[dict[str, Any]])
def list_resources(call: Call, p: Resources) -> list[dict[str, Any]]:
    """Everything that the caller may see, in one list."""
    rows: list[dict[str, Any]] = []
    pools = read_documents(call.services.store, "/pools/")
    if p.type in (None, "vm"):
        rows += _guests(call, pools)
    if p.type is None:
        rows += _pools(call, pools)
    if p.type in (None, "node"):
        rows.append(_node(call))
    if p.type in (None, "storage"):
        rows += _storages(call)
    if p.type in (None, "sdn"):
        rows += _local_network(call)
    return rows


def _guests(call: Call, pools: dict[str, Any]) -> Iterator[Any]:
    member = {int(vmid): pool for pool, document in pools.items() for vmid in document.get("vms", ())}
    samples = call.services.collector.samples()
    resting = call.services.resting
    resting.keep(len(call.services.collector.facts.all()))
    for guest in visible_guests(call, "VM.Audit"):
        sample, pool = samples.get(guest.vmid), member.get(guest.vmid)
        yield resource_row(guest, sample, pool) if sample else resting.row(guest, pool)


def _pools(call: Call, pools: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for pool in pools:
        if call.allowed(f"/pool/{pool}", "Pool.Audit"):
            yield {"id": f"/pool/{pool}", "type": "pool", "pool": pool}


def _node(call: Call) -> dict[str, Any]:
    row = node_row(call)
    if "level" in row:
        row["cgroup-mode"] = 2 if cgroup.hierarchies().version == "v2" else 1
    return row


def _storages(call: Call) -> Iterator[dict[str, Any]]:
    node = call.services.node
    usage = call.services.collector.storages
    for name, options in call.services.context.storages.configured().items():
        if not call.allowed(f"/storage/{name}", "Datastore.Audit", "Datastore.AllocateSpace", any=True):
            continue
        state = usage.get(name)
        row: dict[str, Any] = {
            "id": f"storage/{node}/{name}",
            "type": "storage",
            "storage": name,
            "node": node,
            "plugintype": options["type"],
            "content": options.get("content", ""),
            "shared": int(str(options.get("shared", "0")) == "1"),
            "status": "available" if state and state.active else "unknown",
        }
        if state and state.usage:
            row |= {"maxdisk": state.usage.total, "disk": state.usage.used}
        yield row


def _local_network(call: Call) -> Iterator[dict[str, Any]]:
    node = call.services.node
    if call.allowed("/sdn/zones/localnetwork", "SDN.Audit"):
        yield {"id": f"sdn/{node}/localnetwork", "type": "sdn", "node": node, "sdn": "localnetwork", "status": "ok"}


@endpoint("GET", "/cluster/status", params=NoParams, permission=Perm("/", ("Sys.Audit",)), returns=list[dict[str, Any]])
def read_status(call: Call, p: NoParams) -> list[dict[str, Any]]:
    """The nodes; a single node has no cluster row."""
    node = call.services.node
    return [
        {
            "type": "node",
            "id": f"node/{node}",
            "name": node,
            "nodeid": 0,
            "ip": call.services.address,
            "online": 1,
            "local": 1,
            "level": "",
        }
    ]


@endpoint("GET", "/cluster/nextid", params=NextId, permission=Everyone(), returns=str)
def next_id(call: Call, p: NextId) -> str:
    """The lowest free number in the range that the cluster's options set; a string on the wire."""
    store = call.services.store
    if p.vmid is not None:
        if find_guest(store, p.vmid) is not None:
            raise ParameterError({"vmid": f"VM {p.vmid} already exists"})
        return str(p.vmid)
    lower, upper = cluster_options(read_document(store, "/cluster/options") or {}).next_id_range()
    taken = {guest.record.vmid for guest in read_guests(store)}
    for vmid in range(lower, upper):
        if vmid not in taken:
            return str(vmid)
    raise Failure(f"unable to get any free VMID in range [{lower}, {upper - 1}]")


@endpoint("GET", "/cluster/log", params=ReadLog, permission=Everyone(), returns=list[dict[str, Any]])
def read_log(call: Call, p: ReadLog) -> list[dict[str, Any]]:
    """What was changed or refused last, newest first: everybody's with Sys.Syslog on /, else the caller's own."""
    everybody = call.allowed("/", "Sys.Syslog")
    own = None if everybody else str(call.identity)
    rows = []
    for number, line in enumerate(call.services.audit.read(limit=p.max, who=own)):
        rows.append(
            {
                "uid": number,
                "time": int(line["time"]),
                "node": call.services.node,
                "user": line["who"],
                "tag": "orrery",
                "pri": 6 if line["status"] < 400 else 4,
                "pid": line.get("pid", 0),
                "msg": f"{line['action']}: {line['result']}",
                "origin": line["origin"],
            }
        )
    return rows
