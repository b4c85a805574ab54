# SPDX-License-Identifier: AGPL-3.0-or-later
"""The SQLite store among several processes, killed writers, damaged files and restarts."""

import os
import signal
import sqlite3
import stat
import sys
import threading
import time
import traceback
from pathlib import Path

import pytest

from orrery.errors import Corrupt, Failure
from orrery.store.base import Condition, Entry, Put
from orrery.store.local import SqliteStore


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state" / "store.db"


def entry(store: SqliteStore, key: str) -> Entry:
    found = store.get(key)
    assert found is not None
    return found


def in_child(work):
    """Runs `work` in a forked process; returns its pid."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(code)
    return pid


def join(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def add(store, key, times):
    for _ in range(times):
        while True:
            entry = store.get(key)
            value = b"%d" % (int(entry.value) + 1)
            if store.transact([Condition(key, entry.revision)], [Put(key, value)]) is not None:
                break


def test_the_file_is_private(path):
    store = SqliteStore(path)
    store.put("/a", b"1")
    for name in ("store.db", "store.db-wal", "store.db-shm"):
        assert stat.S_IMODE((path.parent / name).stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    store.close()
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["store.db"]


def test_every_commit_is_synced(path):
    store = SqliteStore(path)
    with store._database.use() as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
    store.close()


def test_state_outlives_the_process(path):
    def write():
        store = SqliteStore(path)
        store.put("/a", b"1")
        assert store.epoch() == epoch

    first = SqliteStore(path)
    epoch = first.epoch()
    assert join(in_child(write)) == 0
    assert entry(first, "/a").value == b"1"
    first.close()
    again = SqliteStore(path)
    assert (again.epoch(), again.revision()) == (epoch, 1)
    again.close()


def test_processes_lose_no_update(path):
    store = SqliteStore(path)
    store.put("/n", b"0")
    # Some open the file anew, some use the store that they inherited over the fork.
    children = [in_child(lambda: add(SqliteStore(path), "/n", 25)) for _ in range(2)]
    children += [in_child(lambda: add(store, "/n", 25)) for _ in range(2)]
    add(store, "/n", 25)
    assert [join(child) for child in children] == [0, 0, 0, 0]
    assert entry(store, "/n").value == b"125"
    assert [int(change.value or b"") for change in store.changes(0)] == list(range(126))
    store.close()


def test_processes_that_start_together_make_one_store(path):
    children = [in_child(lambda: SqliteStore(path).put("/mine", b"1")) for _ in range(6)]
    assert [join(child) for child in children] == [0] * 6
    store = SqliteStore(path)
    assert entry(store, "/mine").version == 6
    assert not list(path.parent.glob("*.new"))
    store.close()


def test_a_killed_writer_leaves_whole_transactions(path):
    store = SqliteStore(path)

    def write_pairs():
        mine = SqliteStore(path)
        number = 0
        while True:
            number += 1
            mine.transact([], [Put(f"/k/{part}", b"%d" % number) for part in range(40)])

    for _ in range(5):
        pid = in_child(write_pairs)
        seen = store.revision()
        while store.revision() < seen + 3:
            time.sleep(0.001)
        os.kill(pid, signal.SIGKILL)
        assert join(pid) == -signal.SIGKILL
        assert len({entry.value for entry in store.range("/k/")}) == 1
        store.check()
        assert store.transact([], [Put("/after", b"1")]) is not None
    revisions = [change.revision for change in store.changes(0, limit=100_000) if change.key == "/k/0"]
    assert len(revisions) + 5 == store.revision()
    store.close()


def test_a_writer_killed_within_a_transaction_changes_nothing(path):
    store = SqliteStore(path)
    store.put("/a", b"before")
    reader, writer = os.pipe()

    def hang():
        mine = SqliteStore(path)
        with mine._database.write() as connection:
            connection.execute("UPDATE entries SET value = x'00'")
            os.write(writer, b".")
            time.sleep(60)

    pid = in_child(hang)
    os.read(reader, 1)
    os.kill(pid, signal.SIGKILL)
    join(pid)
    os.close(reader)
    os.close(writer)
    assert entry(store, "/a").value == b"before"
    store.put("/a", b"after")
    assert store.revision() == 2
    store.close()


def test_a_fork_waits_for_statements_and_takes_no_connection_along(path):
    store = SqliteStore(path)
    store.put("/n", b"0")
    stop = threading.Event()

    def busy():
        while not stop.is_set():
            add(store, "/n", 1)
        store.close()

    def in_the_child():
        for descriptor in Path("/proc/self/fd").iterdir():
            if descriptor.is_symlink():
                assert "store.db" not in descriptor.readlink().name
        add(store, "/n", 5)

    threads = [threading.Thread(target=busy) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert [join(in_child(in_the_child)) for _ in range(5)] == [0] * 5
    stop.set()
    for thread in threads:
        thread.join()
    assert int(entry(store, "/n").value) == entry(store, "/n").version - 1
    store.check()
    store.close()


def test_a_long_transaction_elsewhere_is_waited_for(path):
    store = SqliteStore(path)
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    threading.Timer(0.2, lambda: other.execute("COMMIT")).start()
    begun = time.monotonic()
    store.put("/a", b"1")
    assert time.monotonic() - begun > 0.1
    other.close()
    store.close()


@pytest.mark.parametrize("content", [b"", b"not a database at all, but long enough to be read as one" * 20])
def test_something_else_is_never_overwritten(path, content):
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(Corrupt, match=r"damaged .*backup"):
        SqliteStore(path)
    assert path.read_bytes() == content


def test_another_program_s_database_is_refused(path):
    path.parent.mkdir()
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE t (x)")
    connection.close()
    with pytest.raises(Corrupt, match="not a store"):
        SqliteStore(path)


def test_a_newer_format_is_refused(path):
    SqliteStore(path).close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(Failure, match="newer version"):
        SqliteStore(path)


def test_damage_is_found_and_left_alone(path):
    store = SqliteStore(path)
    for number in range(300):
        store.put(f"/k/{number}", b"x" * 500)
    store.close()
    content = bytearray(path.read_bytes())
    content[8192 : len(content) // 2] = b"\xa5" * (len(content) // 2 - 8192)
    path.write_bytes(content)
    with pytest.raises(Corrupt, match="damaged"):
        SqliteStore(path).check()
    with pytest.raises(Corrupt, match="damaged"):
        SqliteStore(path).range("")
    assert path.read_bytes() == bytes(content)


def test_a_truncated_file_is_found(path):
    store = SqliteStore(path)
    for number in range(300):
        store.put(f"/k/{number}", b"x" * 500)
    store.close()
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(Corrupt):
        SqliteStore(path).range("")


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Failure, match="cannot create the store"):
        SqliteStore(tmp_path / "file" / "store.db")


def test_a_database_that_vanished_is_a_failure_not_a_new_one(path):
    store = SqliteStore(path)
    store.put("/a", b"1")
    store.close()
    path.unlink()
    with pytest.raises(Failure, match="cannot be used"):
        store.get("/a")
    assert not path.exists()


class Clock:
    name, up, now = "one", 1000.0, 1e9

    def boot(self):
        return self.name

    def elapsed(self):
        return self.up

    def wall(self):
        return self.now


@pytest.mark.parametrize(
    ("away", "left"),
    [
        (5, 5.0),
        (-1_000_000, 10.0),
        (9.5, 0.5),
        (10, None),
        (1_000_000, None),
    ],
)
def test_a_lease_over_a_restart_of_the_machine(path, away, left):
    """`away` is how far the wall clock moved over the restart, `left` what the lease then still has."""
    clock = Clock()
    store = SqliteStore(path, clock=clock)
    store.transact([], [Put("/a", b"1", store.grant(10))])
    clock.name, clock.up, clock.now = "two", 7.0, clock.now + away
    if left is None:
        assert store.get("/a") is None
    else:
        assert store.get("/a") is not None
        clock.up += left - 0.1
        assert store.get("/a") is not None
        clock.up += 0.2
        assert store.get("/a") is None
    store.close()
