# SPDX-License-Identifier: AGPL-3.0-or-later
"""/pools: guests and storages that permissions are given on together. A nested pool is named `above/below`."""

from typing import Annotated, Any, Literal, cast

from pydantic import Field

from orrery.access.rules import Everyone, Perm
from orrery.api.call import Call
from orrery.api.endpoint import endpoint
from orrery.api.guestrows import resource_row
from orrery.api.manners import Enum, Format, ListOf, Text
from orrery.api.parameters import Boolean, Params

ALLOCATE = Perm("/pool/{poolid}", ("Pool.Allocate",))
AUDIT = "Pool.Audit"

PoolId = Annotated[str, Format("pve-poolid", doc="Name of the pool.")]
Kind = Literal["qemu", "lxc", "storage"]


class PoolParams(Params):
    """One pool."""

    poolid: PoolId


class CreatePool(PoolParams):
    comment: Annotated[str, Text(max_length=4096, doc="A note.")] | None = None


class UpdatePool(PoolParams):
    comment: Annotated[str, Text(max_length=4096, doc="A note.")] | None = None
    vms: Annotated[list[str], ListOf(Format("pve-vmid"), doc="Guests to add or remove.")] = Field(default=[])
    storage: Annotated[list[str], ListOf(Format("pve-storage-id"), doc="Storages to add or remove.")] = Field(
        default=[]
    )
    delete: Boolean = Field(default=False, description="Remove instead of adding.")
    allow_move: Boolean = Field(default=False, description="Take guests out of the pools that they are in.")


class ReadPool(PoolParams):
    type: Annotated[str, Enum("qemu", "lxc", "storage", doc="Only members of this kind.")] | None = None


class ListPools(Params):
    poolid: PoolId | None = None
    type: Annotated[str, Enum("qemu", "lxc", "storage", requires="poolid", doc="Only members of this kind.")] | None = (
        None
    )


@endpoint("GET", "/pools", params=ListPools, permission=Everyone(), returns=list[dict[str, Any]])
def list_pools(call: Call, p: ListPools) -> list[dict[str, Any]]:
    """Pools that the caller may see, or one of them with its members."""
    if p.poolid is None:
        return call.services.directory.pools.list(call.identity)
    call.require(f"/pool/{p.poolid}", AUDIT)
    return [{"poolid": p.poolid, **_read(call, p.poolid, p.type)}]


@endpoint("POST", "/pools", params=CreatePool, permission=ALLOCATE)
def create_pool(call: Call, p: CreatePool) -> None:
    """Make a pool."""
    call.services.directory.pools.create(p.poolid, p.comment)


@endpoint("PUT", "/pools", params=UpdatePool, permission=ALLOCATE)
@endpoint("PUT", "/pools/{poolid}", params=UpdatePool, permission=ALLOCATE)
def update_pool(call: Call, p: UpdatePool) -> None:
    """Change a pool's note, add members or remove them."""
    call.services.directory.pools.update(
        call.identity,
        p.poolid,
        comment=p.comment,
        vms=[int(vmid) for vmid in p.vms],
        storage=p.storage,
        delete=p.delete,
        allow_move=p.allow_move,
    )


@endpoint("DELETE", "/pools", params=PoolParams, permission=ALLOCATE)
@endpoint("DELETE", "/pools/{poolid}", params=PoolParams, permission=ALLOCATE)
def delete_pool(call: Call, p: PoolParams) -> None:
    """Remove an empty pool."""
    call.services.directory.pools.delete(p.poolid)


@endpoint(
    "GET", "/pools/{poolid}", params=ReadPool, permission=Perm("/pool/{poolid}", (AUDIT,)), returns=dict[str, Any]
)
def read_pool(call: Call, p: ReadPool) -> dict[str, Any]:
    """One pool with its members."""
    return _read(call, p.poolid, p.type)


def _read(call: Call, pool: str, kind: str | None) -> dict[str, Any]:
    found = call.services.directory.pools.read(pool, cast("Kind | None", kind))
    node, collector = call.services.node, call.services.collector
    for member in found["members"]:
        if member["type"] == "storage":
            # On the wire a storage is one thing per node.
            member |= {"id": f"storage/{node}/{member['storage']}", "node": node}
        elif (guest := collector.facts.get(member["vmid"])) is not None:
            # Inventories take a member's name from here, and put it into no group without one.
            member |= resource_row(guest, collector.sample(guest.vmid), pool)
    return found
