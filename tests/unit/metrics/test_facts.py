# SPDX-License-Identifier: AGPL-3.0-or-later
"""What lists say of a guest is what its configuration says, and follows every change of it."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orrery.metrics.facts import FactsCache, boot_disk_size, facts, memory_bytes, processors
from orrery.model.guest import GuestConfig, GuestRecord
from orrery.store.guests import add_guest, find_guest, remove_guest, write_guest
from orrery.store.memory import MemoryStore

GIB = 1 << 30


def machine(vmid: int, **options: str) -> GuestRecord:
    return GuestRecord(vmid, "qemu", "alpha", GuestConfig(options=options))


def test_a_machine_without_options_has_defaults() -> None:
    found = facts(100, "qemu", "alpha", 1, GuestConfig())
    assert (found.name, found.maxcpu, found.maxmem, found.maxdisk) == ("VM 100", 1, 512 << 20, 0)
    assert not found.template
    assert found.tags is None


@pytest.mark.parametrize(
    ("vcpus", "sockets", "cores", "expected"),
    [(None, None, None, 1), (None, "2", "4", 8), ("3", "2", "4", 3), ("0", "1", "2", 2)],
)
def test_processors(vcpus: str | None, sockets: str | None, cores: str | None, expected: int) -> None:
    assert processors(vcpus, sockets, cores) == expected


@pytest.mark.parametrize(("text", "mib"), [(None, 512), ("2048", 2048), ("current=4096", 4096)])
def test_memory(text: str | None, mib: int) -> None:
    assert memory_bytes(text) == mib << 20


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"scsi0": "local:100/a.raw,size=4G"}, 4 * GIB),
        ({"scsi0": "local:100/a.raw,size=4G", "virtio0": "local:100/b.raw,size=8G", "boot": "order=virtio0"}, 8 * GIB),
        ({"ide2": "local:iso/a.iso,media=cdrom,size=700M", "boot": "order=ide2;net0"}, 0),
        ({"ide2": "local:iso/a.iso,media=cdrom,size=700M", "sata0": "local:100/a.raw,size=1G"}, GIB),
        ({"scsi0": "local:100/a.raw,size=huge"}, 0),
        ({"unused0": "local:100/a.raw"}, 0),
    ],
)
def test_the_disk_that_is_booted_from_counts(options: dict[str, str], expected: int) -> None:
    assert boot_disk_size(GuestConfig(options=options)) == expected


def test_the_cache_follows_the_store() -> None:
    store = MemoryStore()
    cache = FactsCache(store)
    assert cache.all() == []
    add_guest(store, machine(100, name="one"))
    add_guest(store, machine(101, name="two"))
    assert [each.name for each in cache] == ["one", "two"]
    before = cache.all()[1]
    stored = find_guest(store, 100)
    assert stored is not None
    write_guest(store, machine(100, name="uno"), stored.revision)
    assert [each.name for each in cache] == ["uno", "two"]
    assert cache.all()[1] is before, "what did not change is not read again"
    found = cache.get(100)
    assert found is not None
    assert found.name == "uno"
    remove_guest(store, 101, before.revision)
    assert [each.vmid for each in cache] == [100]
    assert cache.get(101) is None


changes = st.lists(
    st.tuples(st.integers(100, 104), st.sampled_from(["add", "rename", "remove", "other"])), min_size=1, max_size=12
)


@given(st.lists(changes, max_size=4), st.integers(1, 20))
def test_a_cache_that_follows_is_like_one_that_begins_anew(rounds: list[list[tuple[int, str]]], history: int) -> None:
    """Also where the change log does not reach back to what the cache knows."""
    store = MemoryStore(history=history)
    cache = FactsCache(store)
    for changes in rounds:
        for number, (vmid, what) in enumerate(changes):
            found = find_guest(store, vmid)
            if what == "other":
                store.put("/pools/x", b"{}")
            elif found is None and what == "add":
                add_guest(store, machine(vmid, name=f"new{number}"))
            elif found is not None and what == "rename":
                write_guest(store, machine(vmid, name=f"renamed{number}"), found.revision)
            elif found is not None and what == "remove":
                remove_guest(store, vmid, found.revision)
        assert cache.all() == FactsCache(store).all()


def test_a_container() -> None:
    options = {"rootfs": "local:101/vm-101-disk-0.raw,size=8G", "hostname": "web", "memory": "64", "swap": "0"}
    found = facts(101, "lxc", "n", 1, GuestConfig(options=options | {"cores": "3"}))
    assert (found.name, found.maxcpu, found.maxmem, found.maxswap, found.maxdisk) == ("web", 3, 64 << 20, 0, 8 << 30)
    bare = facts(102, "lxc", "n", 1, GuestConfig(options={"rootfs": "/srv/root"}))
    assert (bare.name, bare.maxcpu, bare.maxswap, bare.maxdisk) == ("CT102", os.cpu_count(), 512 << 20, 0)


def test_a_store_that_was_put_back_is_read_anew() -> None:
    store = MemoryStore()
    cache = FactsCache(store)
    add_guest(store, machine(100, name="one"))
    add_guest(store, machine(101, name="two"))
    assert len(cache.all()) == 2
    older = MemoryStore()
    add_guest(older, machine(102, name="three"))
    cache._store = older
    assert [each.name for each in cache] == ["three"]
