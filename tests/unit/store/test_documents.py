# SPDX-License-Identifier: AGPL-3.0-or-later
import threading

import pytest

from orrery.errors import Conflict, Corrupt, Failure
from orrery.store.documents import Transaction, atomically, read_document, read_documents, update_document
from orrery.store.memory import MemoryStore


@pytest.fixture
def store():
    return MemoryStore()


def test_documents_come_back_as_they_were(store):
    document = {"b": 1, "a": ["\u00e9", None, True, 1.5]}
    update_document(store, "/d/x", lambda _: document)
    assert read_document(store, "/d/x") == document
    assert list(read_document(store, "/d/x") or ()) == ["b", "a"]
    assert read_document(store, "/d/y") is None
    assert read_documents(store, "/d/") == {"x": document}


def test_a_damaged_document_is_named(store):
    store.put("/d/x", b"{")
    with pytest.raises(Corrupt, match="/d/x"):
        read_document(store, "/d/x")


def test_none_removes(store):
    update_document(store, "/d", lambda _: {})
    assert update_document(store, "/d", lambda _: None) is None
    assert store.get("/d") is None


def test_updates_race_without_loss(store):
    def add():
        for _ in range(50):
            update_document(store, "/n", lambda n: (n or 0) + 1)

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read_document(store, "/n") == 200


def test_a_change_that_raises_writes_nothing(store):
    def change(transaction):
        transaction.write("/a", 1)
        raise Failure("no")

    with pytest.raises(Failure):
        atomically(store, change)
    assert store.revision() == 0


def test_what_was_read_must_still_hold(store):
    calls = []

    def change(transaction):
        calls.append(transaction.read("/a"))
        if len(calls) == 1:
            store.put("/a", b"1")
        transaction.write("/b", calls[-1])

    atomically(store, change)
    assert calls == [None, 1]
    assert read_document(store, "/b") == 1


def test_endless_races_are_a_conflict(store):
    def change(transaction):
        transaction.read("/a")
        store.put("/a", b"1")
        transaction.write("/b", 1)

    with pytest.raises(Conflict):
        atomically(store, change, attempts=3)


def test_a_transaction_sees_its_own_writes(store):
    update_document(store, "/p/a", lambda _: 1)
    update_document(store, "/p/b", lambda _: 2)
    transaction = Transaction(store)
    transaction.write("/p/c", 3)
    transaction.remove("/p/a")
    assert transaction.read_range("/p/") == {"b": 2, "c": 3}
    assert transaction.read("/p/a") is None
    assert transaction.read("/p/c") == 3
    assert transaction.commit()
    assert read_documents(store, "/p/") == {"b": 2, "c": 3}


def test_touch_makes_a_concurrent_range_reader_fail(store):
    update_document(store, "/owner", lambda _: {})
    deletion = Transaction(store)
    deletion.read("/owner")
    deletion.read_range("/things/")
    deletion.remove("/owner")

    def add_thing(transaction):
        transaction.touch("/owner")
        transaction.write("/things/1", 1)

    atomically(store, add_thing)
    assert not deletion.commit()
    assert read_document(store, "/owner") == {}


def test_reading_alone_needs_no_revision(store):
    assert atomically(store, lambda transaction: transaction.read("/none")) is None
    assert store.revision() == 0
