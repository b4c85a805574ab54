# SPDX-License-Identifier: AGPL-3.0-or-later
"""/nodes/{node}/storage: the storages as this node sees them, from what was last measured."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from orrery.access.rules import Everyone, Perm
from orrery.api.call import Call
from orrery.api.endpoint import endpoint
from orrery.api.manners import Format, ListOf
from orrery.api.parameters import Boolean, Node, NodeParams, StorageId, StorageParams
from orrery.drivers.storage.options import FORMATS, content_set, flag
from orrery.drivers.storage.registry import node_names

LOOK = Perm("/storage/{storage}", ("Datastore.Audit", "Datastore.AllocateSpace"), any=True)


class ListStorages(NodeParams):
    """Which storages to list."""

    content: Annotated[list[str], ListOf(Format("pve-storage-content"), doc="Only for one of these contents.")] = Field(
        default=[]
    )
    enabled: Boolean = Field(default=False, description="Only storages that this node may use.")
    format: Boolean = Field(default=False, description="Tell which formats images may have.")
    storage: StorageId | None = Field(default=None, description="Only this storage.")
    target: Node | None = Field(default=None, description="Only storages that this other node can use too.")


@endpoint(
    "GET",
    "/nodes/{node}/storage",
    params=ListStorages,
    permission=Everyone(),
    returns=list[dict[str, Any]],
    proxy="node",
)
def list_storages(call: Call, p: ListStorages) -> list[dict[str, Any]]:
    """Storages of which the caller may see the use, with their state and space."""
    rows = []
    usable = call.services.context.storages.configured()
    for name, options in call.services.context.storages.definitions().items():
        if p.storage not in (None, name) or (p.enabled and name not in usable):
            continue
        if p.content and content_set(options).isdisjoint(p.content):
            continue
        if p.target is not None and not _reachable(options, call.services.node, p.target):
            continue
        if call.allowed(f"/storage/{name}", "Datastore.Audit", "Datastore.AllocateSpace", any=True):
            rows.append({"storage": name, **_state(call, name, options, usable=name in usable, formats=p.format)})
    return rows


@endpoint(
    "GET",
    "/nodes/{node}/storage/{storage}/status",
    params=StorageParams,
    permission=LOOK,
    returns=dict[str, Any],
    proxy="node",
)
def read_status(call: Call, p: StorageParams) -> dict[str, Any]:
    """State and space of one storage."""
    storages = call.services.context.storages
    options = storages.definition(p.storage)
    found = _state(call, p.storage, options, usable=p.storage in storages.configured(), formats=False)
    found.pop("used_fraction", None)
    return found


def _state(call: Call, name: str, options: Mapping[str, Any], *, usable: bool, formats: bool) -> dict[str, Any]:
    known = call.services.collector.storages.get(name) if usable else None
    row: dict[str, Any] = {
        "type": options["type"],
        "content": ",".join(sorted(content_set(options))),
        "shared": int(flag(options.get("shared"), False)),
        "enabled": int(usable),
        "active": int(known is not None and known.active),
    }
    if known is not None and known.usage is not None:
        total = known.usage.total
        row |= {"total": total, "used": known.usage.used, "avail": known.usage.available}
        row["used_fraction"] = known.usage.used / total if total else 0
    if formats:
        first = str(options.get("format") or FORMATS[0])
        row["formats"] = {"default": first, "supported": sorted(FORMATS)}
    return row


def _reachable(options: Mapping[str, Any], node: str, target: str) -> bool:
    """Whether both nodes see the same volumes there."""
    nodes = node_names(options)
    return target == node or (flag(options.get("shared"), False) and (not nodes or target in nodes))
