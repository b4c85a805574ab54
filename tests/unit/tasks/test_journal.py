# SPDX-License-Identifier: AGPL-3.0-or-later
"""The journal by itself: transitions, lists, retention, damaged files, many writers."""

import os
import sqlite3
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.unit.tasks.node import DEAD, enter

from orrery.errors import Cancelled, Corrupt, Failure, NoSpace, ParameterError
from orrery.system.process import ProcessId
from orrery.tasks.history import TaskQuery, find, recent, retain
from orrery.tasks.journal import Journal
from orrery.tasks.locks import own_identity
from orrery.tasks.recover import recover
from orrery.tasks.task import TaskState, Upid


def test_a_task_from_begin_to_end(journal: Journal) -> None:
    told: list[str] = []
    journal.on_transition = told.append
    upid = enter(journal, locks=("guest/100",))
    assert journal.locks.holder("guest/100") == str(upid)
    journal.step(upid, "prepared", {"name": 1})
    first = journal.before(upid, "thing.remove", {"name": "a"})
    journal.before(upid, "thing.remove", {"name": "b"})
    journal.kept(upid, first)
    assert journal.get(upid).unfinished == 1
    journal.commit(upid)
    journal.succeed(upid, "OK")
    assert told == ["begin", "prepared", "thing.remove", "thing.remove", "kept", "commit", "end"]
    assert journal.transitions(upid) == [
        ("prepared", {"name": 1}, "noted"),
        ("thing.remove", {"name": "a"}, "kept"),
        ("thing.remove", {"name": "b"}, "dropped"),
        ("commit", {}, "noted"),
    ]
    task = journal.get(upid)
    assert (task.state, task.status, task.committed, task.settled) == (TaskState.ENDED, "OK", True, True)
    assert journal.locks.holder("guest/100") is None


def test_an_undo_action_must_be_known_before_it_is_needed(journal: Journal) -> None:
    upid = enter(journal)
    with pytest.raises(Failure, match=r"no undo action 'thing\.unheard'"):
        journal.before(upid, "thing.unheard", {})


def test_either_cancel_or_commit_wins(journal: Journal) -> None:
    upid = enter(journal)
    assert journal.request_cancel(upid)
    assert journal.request_cancel(upid)
    with pytest.raises(Cancelled):
        journal.commit(upid)
    assert not journal.get(upid).committed
    other = enter(journal, starttime=1001)
    journal.commit(other)
    with pytest.raises(Failure, match="cannot be cancelled"):
        journal.request_cancel(other)
    journal.succeed(other, "OK")
    assert not journal.request_cancel(other)


def test_a_cancel_that_comes_with_the_end(journal: Journal) -> None:
    undoable, plain = enter(journal), enter(journal, starttime=1001)
    journal.before(undoable, "thing.remove", {"name": "a"})
    for upid in (undoable, plain):
        journal.request_cancel(upid)
    with pytest.raises(Cancelled):
        journal.succeed(undoable, "OK")
    assert journal.get(undoable).running
    journal.succeed(plain, "OK")
    assert journal.get(plain).status == "OK"


def test_only_a_dead_task_can_be_claimed(journal: Journal, zombie: ProcessId) -> None:
    living, dead = enter(journal), enter(journal, zombie)
    journal.before(dead, "thing.remove", {"name": "a"})
    journal.before(dead, "thing.remove", {"name": "b"})
    with pytest.raises(Failure, match="still running"):
        journal.claim(living, own_identity(), "x")
    records = journal.claim(dead, own_identity(), "unexpected status")
    assert [record.arguments["name"] for record in records] == ["b", "a"]
    task = journal.get(dead)
    assert (task.state, task.error, task.attempts) == (TaskState.UNDOING, "unexpected status", 1)
    with pytest.raises(Failure, match="still running"):
        journal.claim(dead, own_identity(), "x")


def test_what_a_starting_daemon_finds(journal: Journal, zombie: ProcessId, tmp_path: Path) -> None:
    alive = enter(journal, starttime=1)
    dead = enter(journal, zombie, starttime=2, locks=("guest/2",))
    half = enter(journal, DEAD, starttime=3, locks=("guest/3",))
    journal.before(half, "thing.remove", {"name": "a"})
    run = tmp_path / "run"
    run.mkdir()
    (run / "stray").touch()
    found = recover(journal, run)
    assert [task.upid for task in found.alive] == [alive]
    assert [task.upid for task in found.undo] == [half]
    assert [task.upid for task in found.finished] == [dead]
    assert journal.get(dead).status == "unexpected status"
    assert journal.logs.tail(dead) == "TASK ERROR: unexpected status"
    assert [journal.locks.holder(f"guest/{n}") for n in (2, 3)] == [None, str(half)]
    assert list(run.iterdir()) == []


def test_a_task_of_another_boot_is_dead(journal: Journal) -> None:
    upid = enter(journal)
    assert journal.alive(journal.get(upid))
    with journal.database.write() as connection:
        connection.execute("UPDATE task SET boot = 'another'")
    assert not journal.alive(journal.get(upid))


# --- lists


@pytest.fixture
def full(journal: Journal) -> Journal:
    """Twelve tasks, the newest three running."""
    ends = ["OK", "WARNINGS: 2", "no luck", "unexpected status"]
    for n in range(12):
        user = ("anna@pve", "anna@pve!ci", "bob@pve", "anna@pve!x@pve")[n % 4]
        upid = enter(journal, kind=f"kind{n % 2}", subject=str(100 + n % 3), user=user, starttime=1000 + n)
        if n < 9:
            if n % 4 < 2:
                journal.succeed(upid, ends[n % 4])
            else:
                journal.fail(upid, ends[n % 4])
    return journal


def listed(journal: Journal, query: TaskQuery) -> list[int]:
    tasks, total = find(journal, query)
    assert total >= len(tasks)
    return [task.upid.starttime - 1000 for task in tasks]


def test_lists_are_paged_newest_first(full: Journal) -> None:
    assert listed(full, TaskQuery()) == [8, 7, 6, 5, 4, 3, 2, 1, 0]
    assert find(full, TaskQuery(start=2, limit=3))[1] == 9
    assert listed(full, TaskQuery(start=2, limit=3)) == [6, 5, 4]
    assert listed(full, TaskQuery(start=20)) == []
    assert find(full, TaskQuery(limit=0)) == ([], 9)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (TaskQuery(source="active"), [11, 10, 9]),
        (TaskQuery(source="all", limit=4), [11, 10, 9, 8]),
        (TaskQuery(vmid=101), [7, 4, 1]),
        (TaskQuery(typefilter="kind1"), [7, 5, 3, 1]),
        (TaskQuery(typefilter="kind"), []),
        (TaskQuery(userfilter="BOB"), [6, 2]),
        (TaskQuery(userfilter="%"), []),
        (TaskQuery(errors=True), [7, 6, 5, 3, 2, 1]),
        (TaskQuery(statusfilter=["ok"]), [8, 4, 0]),
        (TaskQuery(statusfilter=["warning", "unknown"]), [7, 5, 3, 1]),
        (TaskQuery(statusfilter=["error"], source="all"), [6, 2]),
        (TaskQuery(since=1003, until=1005), [5, 4, 3]),
        (TaskQuery(own="anna@pve"), [8, 5, 4, 1, 0]),
        (TaskQuery(own="anna@pve!ci"), [5, 1]),
        (TaskQuery(own="ann@pve"), []),
    ],
)
def test_filters(full: Journal, query: TaskQuery, expected: list[int]) -> None:
    assert listed(full, query) == expected


def test_recent_tasks(full: Journal) -> None:
    assert [task.upid.starttime - 1000 for task in recent(full, 2)] == [11, 10, 9, 8, 7]
    assert all("status" not in task.list_reply() for task in recent(full, 0))
    assert {task.upid.user for task in recent(full, own="bob@pve")} == {"bob@pve"}


def test_retention_by_count_and_age(full: Journal, zombie: ProcessId) -> None:
    undone = enter(full, zombie, starttime=999)
    full.before(undone, "thing.remove", {"name": "a"})
    full.fail(undone, "no luck")
    for task in find(full, TaskQuery(source="all"))[0]:
        full.logs.finish(task.upid, "TASK OK")
    oldest = find(full, TaskQuery())[0][-1].upid
    assert retain(full, count=100) == 0
    assert retain(full, count=8) == 5
    assert listed(full, TaskQuery(source="all")) == [-1, 11, 10, 9, 8, 7, 6, 5]
    assert not full.logs.path(oldest).exists()
    with pytest.raises(ParameterError):
        full.read_log(oldest)
    assert retain(full, seconds=-10) == 4
    assert listed(full, TaskQuery(source="all")) == [-1, 11, 10, 9]
    with full.database.read() as connection:
        owners = connection.execute("SELECT count(*) FROM transition WHERE task NOT IN (SELECT serial FROM task)")
        assert owners.fetchone()[0] == 0


def test_ten_thousand_tasks_are_listed_quickly(journal: Journal) -> None:
    upid = enter(journal)
    journal.succeed(upid, "OK")
    with journal.database.write() as connection:
        for n in range(10_000):
            name = str(Upid("n", n + 1, 5, 2000 + n, "qmstart", str(n % 50), "a@pve"))
            connection.execute(
                "INSERT INTO task (upid, starttime, kind, subject, user, operation, boot, worker_pid, worker_start,"
                " state, status, endtime) SELECT ?, ?, kind, ?, user, operation, boot, worker_pid, worker_start,"
                " state, status, endtime FROM task WHERE serial = 1",
                (name, 2000 + n, str(n % 50)),
            )
    begin = time.perf_counter()
    assert find(journal, TaskQuery(vmid=7, statusfilter=["ok"]))[1] == 200
    assert len(recent(journal)) == 25
    assert time.perf_counter() - begin < 0.5


# --- the file


def test_the_file_is_private_and_durable(journal: Journal) -> None:
    assert stat.S_IMODE(journal.database.path.stat().st_mode) == 0o600
    with journal.database.read() as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
        assert connection.execute("PRAGMA synchronous").fetchone()[0] == 2


@pytest.mark.parametrize("content", [b"", b"rubbish" * 1000], ids=["empty", "rubbish"])
def test_a_damaged_file_is_refused_and_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tasks.db"
    path.write_bytes(content)
    with pytest.raises(Corrupt, match=r"is damaged.*was left as it is"):
        Journal(path, tmp_path)
    assert path.read_bytes() == content


def test_a_file_of_something_else_or_of_a_newer_version(tmp_path: Path, journal: Journal) -> None:
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE x (y)")
    connection.close()
    with pytest.raises(Corrupt, match="not a journal"):
        Journal(path, tmp_path)
    with journal.database.write() as ours:
        ours.execute("PRAGMA user_version = 99")
    with pytest.raises(Failure, match="newer version"):
        Journal(journal.database.path, tmp_path)


def test_a_full_disk_is_told_as_such(journal: Journal) -> None:
    upid = enter(journal)
    with journal.database.read() as connection:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(NoSpace, match="free some space"):
        journal.step(upid, "big", {"x": "y" * 100_000})
    assert journal.transitions(upid) == []


def test_threads_do_not_get_in_each_others_way(journal: Journal) -> None:
    def work(n: int) -> None:
        upid = enter(journal, starttime=n)
        for step in range(5):
            journal.step(upid, f"step {step}", {})
        journal.succeed(upid, "OK")

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(work, range(64)))
    assert find(journal, TaskQuery(statusfilter=["ok"]))[1] == 64


def test_a_fork_leaves_both_sides_with_a_working_journal(journal: Journal) -> None:
    upid = enter(journal)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            journal.step(upid, "child", {})
            code = 0
        finally:
            os._exit(code)
    journal.step(upid, "parent", {})
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert {name for name, _, _ in journal.transitions(upid)} == {"child", "parent"}
