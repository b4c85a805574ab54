# SPDX-License-Identifier: AGPL-3.0-or-later
"""The mirror among other writers."""

import threading
import time
from typing import Any

import pytest

from orrery.errors import Locked
from orrery.store.base import Change, Condition, Put
from orrery.store.local import SqliteStore
from orrery.store.memory import MemoryStore
from orrery.store.mirror import Mirror


@pytest.fixture
def path(tmp_path):
    return tmp_path / "store.db"


@pytest.fixture
def mirror(path):
    made = Mirror(SqliteStore(path))
    yield made
    made.close()


def test_it_begins_with_what_is_there():
    store = MemoryStore()
    store.put("/a", b"1")
    assert Mirror(store).get("/a") == store.get("/a")


def test_own_writes_are_visible_at_once_and_heard_once(mirror):
    heard: list[Any] = []
    mirror.subscribe(lambda changes: heard.extend(changes))
    mirror.put("/a", b"1")
    assert mirror.get("/a").value == b"1"
    mirror.delete("/a")
    assert mirror.get("/a") is None
    mirror.sync()
    assert heard == [Change(1, "/a", b"1"), Change(2, "/a", None)]


def test_a_lost_race_shows_who_won(mirror, path):
    mirror.put("/a", b"1")
    SqliteStore(path).put("/a", b"2")
    assert mirror.get("/a").value == b"1"
    assert mirror.transact([Condition("/a", 1)], [Put("/a", b"3")]) is None
    assert mirror.get("/a").value == b"2"


def test_other_writers_are_followed(mirror, path):
    heard = threading.Event()
    mirror.subscribe(lambda changes: heard.set())
    mirror.start()
    other = SqliteStore(path)
    begun = time.monotonic()
    revision = other.put("/a", b"1")
    assert mirror.wait_revision(revision, 5)
    assert mirror.get("/a") == other.get("/a")
    assert heard.wait(1)
    assert time.monotonic() - begun < 1
    assert not mirror.wait_revision(revision + 1, 0.01)


def test_ended_leases_are_followed(mirror):
    mirror.start()
    mirror.transact([], [Put("/a", b"1", mirror.grant(0.05))])
    assert mirror.wait_revision(2, 5)
    assert mirror.get("/a") is None


def test_a_log_that_was_cut_makes_it_read_anew():
    store = MemoryStore(history=4)
    store.put("/gone", b"1")
    store.put("/same", b"1")
    mirror = Mirror(store)
    heard: list[Any] = []
    mirror.subscribe(lambda changes: heard.extend(changes))
    store.delete("/gone")
    for number in range(50):
        store.put("/n", b"%d" % number)
    mirror.sync()
    assert mirror.range("") == store.range("")
    assert [(change.key, change.value) for change in heard] == [("/gone", None), ("/n", b"49")]


def test_an_older_copy_put_back_is_taken_over():
    store = MemoryStore()
    mirror = Mirror(store)
    for _ in range(5):
        mirror.put("/a", b"new")
    older = MemoryStore()
    older.put("/b", b"old")
    mirror.store = older
    heard: list[Any] = []
    mirror.subscribe(lambda changes: heard.extend(changes))
    assert mirror.sync() == 1
    assert mirror.range("") == older.range("")
    assert {(change.key, change.value) for change in heard} == {("/a", None), ("/b", b"old")}


def test_a_listener_may_write_and_fail(mirror):
    heard: list[Any] = []

    def writes(changes):
        heard.append([change.key for change in changes])
        if changes[0].key == "/a":
            mirror.put("/b", b"1")

    def fails(changes):
        raise RuntimeError("no")

    mirror.subscribe(fails)
    end = mirror.subscribe(writes)
    mirror.put("/a", b"1")
    assert heard == [["/a"], ["/b"]]
    end()
    end()
    mirror.put("/a", b"2")
    assert len(heard) == 2


def test_it_goes_on_after_the_store_failed(monkeypatch):
    class Flaky(MemoryStore):
        broken = False

        def revision(self):
            if self.broken:
                raise Locked("busy")
            return super().revision()

    monkeypatch.setattr("orrery.store.mirror.RETRY_SECONDS", 0.02)
    store = Flaky()
    mirror = Mirror(store, interval=0.005)
    mirror.start()
    store.broken = True
    store.put("/a", b"1")
    time.sleep(0.05)
    assert mirror.get("/a") is None
    store.broken = False
    assert mirror.wait_revision(1, 5)
    mirror.stop()


def test_readers_and_writers_side_by_side_see_order(mirror):
    mirror.start()
    seen: list[Any] = []
    mirror.subscribe(lambda changes: seen.extend(change.revision for change in changes))

    def write(name):
        for number in range(30):
            mirror.put(f"/{name}/{number}", b"x")
            assert mirror.get(f"/{name}/{number}") is not None
        mirror.store.close()

    threads = [threading.Thread(target=write, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    mirror.sync()
    assert seen == list(range(1, 91))
    assert len(mirror.range("/")) == 90


def test_ranges_of_many_guests_are_quick():
    store = MemoryStore()
    store.transact([], [Put(f"/guests/{vmid}", b"x" * 600) for vmid in range(100, 10_100)])
    mirror = Mirror(store)
    begun = time.perf_counter()
    assert len(mirror.range("/guests/")) == 10_000
    assert time.perf_counter() - begun < 0.1
