# SPDX-License-Identifier: AGPL-3.0-or-later
"""What every store must do, whatever it is made of."""

import threading
from itertools import count
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from orrery.store.base import Change, Compacted, Condition, Delete, Put
from orrery.store.local import SqliteStore
from orrery.store.memory import MemoryStore
from orrery.store.mirror import Mirror

KINDS = ["memory", "sqlite", "mirror"]


class Clock:
    """A clock that tests set."""

    def __init__(self):
        self.name = "first boot"
        self.up = 1000.0
        self.now = 1_700_000_000.0

    def boot(self):
        return self.name

    def elapsed(self):
        return self.up

    def wall(self):
        return self.now

    def pass_time(self, seconds):
        self.up += seconds
        self.now += seconds


class Followed(Mirror):
    """Looks at the store before every read, as the mirror's thread does every 50 ms."""

    def revision(self):
        return self.sync()

    def get(self, key):
        self.sync()
        return super().get(key)

    def range(self, prefix, *, after=None, limit=None):
        self.sync()
        return super().range(prefix, after=after, limit=limit)


def make(kind, folder, clock, history=10_000):
    if kind == "memory":
        return MemoryStore(history=history, clock=clock)
    store = SqliteStore(folder / "store.db", history=history, clock=clock)
    return Followed(store) if kind == "mirror" else store


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture(params=KINDS)
def store(request, tmp_path, clock):
    made = make(request.param, tmp_path, clock)
    yield made
    made.close()


def test_an_empty_store(store):
    assert store.revision() == 0
    assert store.get("/a") is None
    assert store.range("") == []
    assert store.changes(0) == []
    assert len(store.epoch()) == 32


def test_an_entry_carries_its_history(store):
    first = store.put("/a", b"1")
    second = store.put("/a", b"2")
    entry = store.get("/a")
    assert (entry.value, entry.created, entry.revision, entry.version) == (b"2", first, second, 2)
    assert store.delete("/a")
    assert not store.delete("/a")
    third = store.put("/a", b"")
    entry = store.get("/a")
    assert (entry.value, entry.created, entry.revision, entry.version) == (b"", third, third, 1)


def test_ranges_are_ordered_and_paged(store):
    names = ["/g/1", "/g/10", "/g/2", "/g/a\u00e9", "/g/\U0010ffff", "/g/\ud7ff", "/h", "/g", "/g0"]
    store.transact([], [Put(name, name.encode()) for name in names])
    inside = sorted(name for name in names if name.startswith("/g/"))
    assert [entry.key for entry in store.range("/g/")] == inside
    assert [entry.key for entry in store.range("/g/", limit=2)] == inside[:2]
    assert [entry.key for entry in store.range("/g/", after=inside[1])] == inside[2:]
    assert [entry.key for entry in store.range("/g/", after="/g/1x", limit=1)] == ["/g/2"]
    assert store.range("/g/", limit=0) == []
    assert store.range("/nothing") == []
    assert [entry.key for entry in store.range("")] == sorted(names)
    assert [entry.key for entry in store.range("/g/\ud7ff")] == ["/g/\ud7ff"]
    assert [entry.key for entry in store.range("/g/\U0010ffff")] == ["/g/\U0010ffff"]


def test_a_transaction_is_all_or_nothing(store):
    revision = store.transact([Condition("/a", 0), Condition("/b", 0)], [Put("/a", b"1"), Put("/b", b"1")])
    assert store.get("/a").revision == store.get("/b").revision == revision
    assert store.transact([Condition("/a", revision), Condition("/b", 0)], [Put("/a", b"2"), Delete("/b")]) is None
    assert store.get("/a").value == b"1"
    assert store.revision() == revision
    assert store.transact([Condition("/a", revision)], [Put("/c", b"3"), Delete("/b")]) == revision + 1
    assert [entry.key for entry in store.range("/")] == ["/a", "/c"]


def test_what_changes_nothing_makes_no_revision(store):
    revision = store.put("/a", b"1")
    assert store.transact([Condition("/a", revision)], []) == revision
    assert store.transact([], [Delete("/none")]) == revision
    assert store.changes(revision) == []


def test_the_change_log(store):
    store.put("/a", b"1")
    second = store.transact([], [Put("/b", b"2"), Delete("/a")])
    assert store.changes(0) == [Change(1, "/a", b"1"), Change(second, "/a", None), Change(second, "/b", b"2")]
    assert store.changes(1) == store.changes(0)[1:]
    assert store.changes(0, limit=1) == store.changes(0)[:1]
    assert store.changes(1, limit=1) == store.changes(0)[1:]
    with pytest.raises(Compacted):
        store.changes(second + 1)


@pytest.mark.parametrize("kind", KINDS)
def test_the_change_log_is_cut_by_count(kind, tmp_path, clock):
    store = make(kind, tmp_path, clock, history=8)
    for number in range(100):
        store.put("/a", b"%d" % number)
    assert [change.value for change in store.changes(92)] == [b"%d" % number for number in range(92, 100)]
    with pytest.raises(Compacted):
        store.changes(80)
    assert len(store.changes(store.revision() - 8)) == 8
    store.close()


@pytest.mark.parametrize(
    "key", ["", "a", "/a\x00b", "/a\nb", "/\x7f", "/" + "x" * 1024, "/" + "\u00e9" * 512, "/\ud800"]
)
def test_a_malformed_key_is_refused(store, key):
    with pytest.raises(ValueError):
        store.put(key, b"1")
    with pytest.raises(ValueError):
        store.transact([], [Put("/good", b"1"), Delete(key)])
    assert store.range("") == []


def test_a_transaction_names_a_key_once(store):
    with pytest.raises(ValueError):
        store.transact([], [Put("/a", b"1"), Delete("/a")])
    assert store.revision() == 0


def test_a_lease_takes_its_keys_along(store, clock):
    lease = store.grant(10)
    store.transact([], [Put("/a", b"1", lease), Put("/b", b"1", lease), Put("/c", b"1")])
    store.put("/b", b"without a lease now")
    clock.pass_time(6)
    assert store.renew(lease)
    clock.pass_time(9)
    assert store.get("/a").lease == lease
    before = store.revision()
    clock.pass_time(1)
    assert store.revision() == before + 1
    assert store.get("/a") is None
    assert [entry.key for entry in store.range("/")] == ["/b", "/c"]
    assert store.changes(before) == [Change(before + 1, "/a", None)]
    assert not store.renew(lease)
    with pytest.raises(ValueError):
        store.transact([], [Put("/d", b"", lease)])
    assert store.get("/d") is None


def test_an_ended_lease_frees_its_key_for_a_conditional_write(store, clock):
    store.transact([Condition("/lock", 0)], [Put("/lock", b"me", store.grant(5))])
    assert store.transact([Condition("/lock", 0)], [Put("/lock", b"you")]) is None
    clock.pass_time(5)
    assert store.transact([Condition("/lock", 0)], [Put("/lock", b"you")]) is not None


def test_a_lease_can_be_revoked(store):
    lease, other = store.grant(10), store.grant(10)
    assert lease != other
    store.transact([], [Put("/a", b"1", lease), Put("/b", b"1", other)])
    store.revoke(lease)
    store.revoke(lease)
    assert [entry.key for entry in store.range("/")] == ["/b"]


@pytest.mark.parametrize("jump", [-1e9, -3600, 3600, 1e9])
def test_a_clock_jump_neither_ends_nor_prolongs_a_lease(store, clock, jump):
    store.transact([], [Put("/a", b"1", store.grant(10))])
    clock.now += jump
    clock.pass_time(9)
    assert store.get("/a") is not None
    clock.pass_time(1)
    assert store.get("/a") is None


def test_threads_lose_no_update(store):
    store.put("/n", b"0")

    def add():
        for _ in range(20):
            while True:
                entry = store.get("/n")
                if store.transact([Condition("/n", entry.revision)], [Put("/n", b"%d" % (int(entry.value) + 1))]):
                    break
        store.close()

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.get("/n").value == b"80"
    assert store.get("/n").version == 81


KEYS = st.sampled_from(["/a", "/a/b", "/a/c", "/b", "/b/\u00e9"])
OPERATIONS = st.lists(
    st.one_of(st.builds(Put, KEYS, st.binary(max_size=3)), st.builds(Delete, KEYS)),
    max_size=3,
    unique_by=lambda operation: operation.key,
)
folders = count()


class AgainstAModel(RuleBasedStateMachine):
    """Compares a store with a dictionary and a list."""

    kind = ""
    folder: Path

    @initialize()
    def begin(self):
        folder = self.folder / f"{self.kind}-{next(folders)}"
        self.store = make(self.kind, folder, Clock())
        self.model = {}
        self.log: list[tuple[int, str, bytes | None]] = []
        self.newest = 0

    @rule(operations=OPERATIONS, conditions=st.lists(st.tuples(KEYS, st.booleans()), max_size=2))
    def transact(self, operations, conditions):
        wanted = []
        holds = True
        for key, right in conditions:
            actual = self.model.get(key, (b"", 0, 0, 0))[1]
            wanted.append(Condition(key, actual if right else actual + 1))
            holds = holds and right
        result = self.store.transact(wanted, operations)
        if not holds:
            assert result is None
            return
        revision = self.newest + 1
        lines: list[tuple[int, str, bytes | None]] = []
        for operation in operations:
            _, _, created, version = self.model.get(operation.key, (b"", 0, revision, 0))
            if isinstance(operation, Put):
                self.model[operation.key] = (operation.value, revision, created, version + 1)
                lines.append((revision, operation.key, operation.value))
            elif self.model.pop(operation.key, None):
                lines.append((revision, operation.key, None))
        if lines:
            self.newest = revision
        self.log += sorted(lines, key=lambda line: line[1])
        assert result == self.newest

    @rule(
        prefix=st.sampled_from(["", "/", "/a", "/a/", "/b/\u00e9", "/z"]),
        after=st.none() | KEYS,
        limit=st.none() | st.integers(0, 3),
    )
    def look(self, prefix, after, limit):
        wanted = sorted(key for key in self.model if key.startswith(prefix) and (after is None or key > after))
        assert [entry.key for entry in self.store.range(prefix, after=after, limit=limit)] == wanted[:limit]

    @rule(share=st.floats(0, 1))
    def follow(self, share):
        since = int(self.newest * share)
        found = [(change.revision, change.key, change.value) for change in self.store.changes(since)]
        assert sorted(found, key=lambda line: line[:2]) == [line for line in self.log if line[0] > since]

    @rule()
    def reopen(self):
        if self.kind != "memory":
            path = (self.store.store if self.kind == "mirror" else self.store).path
            self.store.close()
            self.store = make(self.kind, path.parent, Clock())

    @invariant()
    def same(self):
        if hasattr(self, "store"):
            assert self.store.revision() == self.newest
            found = self.store.range("")
            assert {e.key: (e.value, e.revision, e.created, e.version) for e in found} == self.model

    def teardown(self):
        if hasattr(self, "store"):
            self.store.close()


@pytest.mark.parametrize("kind", KINDS)
def test_a_store_does_what_its_model_does(kind, tmp_path):
    AgainstAModel.kind = kind
    AgainstAModel.folder = tmp_path
    run_state_machine_as_test(
        AgainstAModel,
        settings=settings(
            max_examples=30 if kind == "memory" else 12,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
