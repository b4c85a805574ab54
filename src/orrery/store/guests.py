# SPDX-License-Identifier: AGPL-3.0-or-later
"""Guests in the store: one key each, `/guests/VMID`, changed only by compare-and-set."""

from dataclasses import dataclass

from orrery.errors import AlreadyExists, Conflict, NotFound
from orrery.model.guest import GuestRecord
from orrery.store.base import Condition, Delete, Entry, Put, Store

PREFIX = "/guests/"
FOLDERS = {"qemu": "qemu-server", "lxc": "lxc"}
NOUNS = {"qemu": "VM", "lxc": "CT"}


@dataclass(frozen=True, slots=True)
class StoredGuest:
    """A guest with the revision at which it was read."""

    record: GuestRecord
    revision: int


def guest_key(vmid: int) -> str:
    """The store's key of a guest."""
    return f"{PREFIX}{vmid}"


def decode_guest(entry: Entry) -> StoredGuest:
    """A stored entry as a guest. Raises `Corrupt`."""
    return StoredGuest(GuestRecord.decode(int(entry.key[len(PREFIX) :]), entry.value), entry.revision)


def find_guest(store: Store, vmid: int) -> StoredGuest | None:
    """The guest of that number, of whatever kind and node."""
    entry = store.get(guest_key(vmid))
    return decode_guest(entry) if entry else None


def read_guest(store: Store, vmid: int, *, kind: str, node: str) -> StoredGuest:
    """A guest of this kind on this node. Raises `NotFound` with the text that clients know."""
    found = find_guest(store, vmid)
    if found is None or found.record.kind != kind or found.record.node != node:
        raise NotFound(f"Configuration file 'nodes/{node}/{FOLDERS[kind]}/{vmid}.conf' does not exist")
    return found


def read_guests(store: Store) -> list[StoredGuest]:
    """All guests, by number."""
    return sorted((decode_guest(entry) for entry in store.range(PREFIX)), key=lambda g: g.record.vmid)


def add_guest(store: Store, record: GuestRecord) -> int:
    """Enters a new guest; its revision. Raises `AlreadyExists` when the number is taken anywhere in the cluster."""
    key = guest_key(record.vmid)
    revision = store.transact([Condition(key, 0)], [Put(key, record.encode())])
    if revision is None:
        raise taken(store, record.vmid)
    return revision


def taken(store: Store, vmid: int) -> AlreadyExists:
    """The error that says by whom a number is taken."""
    other = find_guest(store, vmid)
    noun, where = (NOUNS[other.record.kind], other.record.node) if other else ("VM", "unknown")
    return AlreadyExists(f"unable to create {noun} {vmid} - {noun} {vmid} already exists on node '{where}'")


def write_guest(store: Store, record: GuestRecord, revision: int) -> int:
    """Replaces a guest read at `revision`; the new revision. Raises `Conflict` when it changed meanwhile."""
    key = guest_key(record.vmid)
    written = store.transact([Condition(key, revision)], [Put(key, record.encode())])
    if written is None:
        raise Conflict
    return written


def remove_guest(store: Store, vmid: int, revision: int) -> None:
    """Removes a guest read at `revision`. Raises `Conflict` when it changed meanwhile."""
    key = guest_key(vmid)
    if store.transact([Condition(key, revision)], [Delete(key)]) is None:
        raise Conflict
