# SPDX-License-Identifier: AGPL-3.0-or-later
"""Pools: guests and storages that permissions are given on together. Pools nest up to three levels (`a/b/c`)."""

from collections.abc import Iterable
from typing import Any, Literal

from orrery.access.permissions import Permissions
from orrery.access.records import POOLS, drop_acl, plain_name, require_pool
from orrery.drivers.storage.registry import BUILT_IN
from orrery.errors import AlreadyExists, Failure, Forbidden, NotFound, ParameterError
from orrery.model.identity import Identity
from orrery.store.base import Store
from orrery.store.documents import Transaction, atomically, read_document, read_documents

LEVELS = 3
GUESTS = "/guests/"
STORAGES = "/storage/"

Kind = Literal["qemu", "lxc", "storage"]


class Pools:
    """All pools. A guest is in one pool at most, a storage in any number."""

    def __init__(self, store: Store, permissions: Permissions) -> None:
        self._store = store
        self._permissions = permissions

    def list(self, caller: Identity) -> list[dict[str, Any]]:
        """The pools that the caller may see."""
        return [
            {"poolid": pool, **_comment(document)}
            for pool, document in read_documents(self._store, POOLS).items()
            if self._permissions.allowed(caller, f"/pool/{pool}", ("Pool.Audit",))
        ]

    def read(self, pool: str, kind: Kind | None = None) -> dict[str, Any]:
        """A pool's comment and members, of one kind or all. Raises `NotFound`."""
        document = read_document(self._store, POOLS + _checked(pool))
        if document is None:
            raise NotFound(f"pool '{pool}' does not exist")
        members: list[dict[str, Any]] = []
        for vmid in document["vms"]:
            guest = read_document(self._store, f"{GUESTS}{vmid}")
            if guest is not None and kind in (None, guest["kind"]):
                members.append(
                    {"id": f"{guest['kind']}/{vmid}", "type": guest["kind"], "vmid": vmid, "node": guest["node"]}
                )
        if kind in (None, "storage"):
            members += [
                {"id": f"storage/{name}", "type": "storage", "storage": name}
                for name in document["storage"]
                if name == BUILT_IN or self._store.get(STORAGES + name) is not None
            ]
        return {**_comment(document), "members": members}

    def create(self, pool: str, comment: str | None = None) -> None:
        """Makes an empty pool; the one above it must exist. Raises `AlreadyExists`, `NotFound`."""
        parent = _checked(pool).rpartition("/")[0]

        def create(transaction: Transaction) -> None:
            if transaction.read(POOLS + pool) is not None:
                raise AlreadyExists(f"create pool failed: pool '{pool}' already exists")
            if parent:
                require_pool(transaction, parent)
                # So that a deletion of the parent at the same moment cannot overlook this pool.
                transaction.touch(POOLS + parent)
            transaction.write(POOLS + pool, {"comment": comment or "", "vms": [], "storage": []})

        atomically(self._store, create)

    def update(
        self,
        caller: Identity,
        pool: str,
        *,
        comment: str | None = None,
        vms: Iterable[int] = (),
        storage: Iterable[str] = (),
        delete: bool = False,
        allow_move: bool = False,
    ) -> None:
        """Sets the comment, and adds members, or removes them.

        Who adds or removes a guest needs VM.Allocate on it (or Pool.Allocate on the pool that it leaves), for a
        storage Datastore.Allocate. Raises `NotFound`, `Forbidden`, `Failure`, `ParameterError`.
        """
        guests, storages = sorted(set(vms)), sorted(set(storage))

        def update(transaction: Transaction) -> None:
            document = require_pool(transaction, _checked(pool))
            if comment is not None:
                document["comment"] = comment
            transaction.write(POOLS + pool, document)
            for vmid in guests:
                self._permissions.require(caller, f"/vms/{vmid}", ("VM.Allocate",))
                if delete:
                    _take_out(transaction, pool, "vms", vmid)
                else:
                    self._put_in(transaction, caller, pool, vmid, allow_move)
            for name in storages:
                self._permissions.require(caller, f"/storage/{name}", ("Datastore.Allocate",))
                if delete:
                    _take_out(transaction, pool, "storage", name)
                else:
                    self._add_storage(transaction, pool, name)

        atomically(self._store, update)

    def delete(self, pool: str) -> None:
        """Removes an empty pool and its permissions. Raises `NotFound`, `Failure`."""

        def delete(transaction: Transaction) -> None:
            document = require_pool(transaction, _checked(pool))
            inside = [f"VM {vmid}" for vmid in document["vms"]] + [f"storage '{name}'" for name in document["storage"]]
            inside += [f"pool '{pool}/{name}'" for name in transaction.read_range(f"{POOLS}{pool}/")]
            if inside:
                raise Failure(f"delete pool failed: pool '{pool}' is not empty (it holds {inside[0]})")
            transaction.remove(POOLS + pool)
            drop_acl(transaction, lambda entry: entry["path"] == f"/pool/{pool}")

        atomically(self._store, delete)

    def _put_in(self, transaction: Transaction, caller: Identity, pool: str, vmid: int, allow_move: bool) -> None:
        if self._store.get(f"{GUESTS}{vmid}") is None:
            raise NotFound(f"VM {vmid} does not exist")
        current = pool_of(transaction, vmid)
        if current is not None and current != pool:
            if not allow_move:
                raise Failure(f"VM {vmid} is already in pool '{current}'; set 'allow-move' to move it")
            if not self._permissions.allowed(caller, f"/pool/{current}", ("Pool.Allocate",)):
                raise Forbidden(f"Permission check failed (/pool/{current}, Pool.Allocate)")
        place_guest(transaction, vmid, pool)

    def _add_storage(self, transaction: Transaction, pool: str, name: str) -> None:
        if name != BUILT_IN and self._store.get(STORAGES + name) is None:
            raise NotFound(f"storage '{name}' does not exist")
        document = require_pool(transaction, pool)
        if name not in document["storage"]:
            transaction.write(POOLS + pool, {**document, "storage": sorted([*document["storage"], name])})


def pool_of(transaction: Transaction, vmid: int) -> str | None:
    """The pool that a guest is in."""
    for pool, document in transaction.read_range(POOLS).items():
        if vmid in document["vms"]:
            return pool
    return None


def place_guest(transaction: Transaction, vmid: int, pool: str | None) -> None:
    """Puts a guest into a pool and takes it out of any other; None only takes it out. Raises `NotFound`."""
    current = pool_of(transaction, vmid)
    if current == pool:
        return
    if current is not None:
        _take_out(transaction, current, "vms", vmid)
    if pool is not None:
        document = require_pool(transaction, _checked(pool))
        transaction.write(POOLS + pool, {**document, "vms": sorted([*document["vms"], vmid])})


def forget_guest(transaction: Transaction, vmid: int) -> None:
    """Removes what refers to a guest that is gone: its place in a pool, and permissions on it."""
    place_guest(transaction, vmid, None)
    drop_acl(transaction, lambda entry: entry["path"] == f"/vms/{vmid}")


def forget_storage(transaction: Transaction, storage: str) -> None:
    """Removes what refers to a storage that is gone: its place in pools, and permissions on it."""
    for pool, document in transaction.read_range(POOLS).items():
        if storage in document["storage"]:
            _take_out(transaction, pool, "storage", storage)
    drop_acl(transaction, lambda entry: entry["path"] == f"/storage/{storage}")


def _take_out(transaction: Transaction, pool: str, kind: str, member: int | str) -> None:
    document = require_pool(transaction, pool)
    if member not in document[kind]:
        what = "VM" if kind == "vms" else "Storage"
        raise Failure(f"{what} '{member}' is not a member of pool '{pool}'")
    transaction.write(POOLS + pool, {**document, kind: [entry for entry in document[kind] if entry != member]})


def _checked(pool: str) -> str:
    levels = pool.split("/")
    if len(levels) > LEVELS:
        raise ParameterError({"poolid": f"pools nest at most {LEVELS} levels deep"})
    for level in levels:
        plain_name(level, "poolid")
    return pool


def _comment(document: dict[str, Any]) -> dict[str, str]:
    return {"comment": document["comment"]} if document.get("comment") else {}
