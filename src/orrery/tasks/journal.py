# SPDX-License-Identifier: AGPL-3.0-or-later
"""The journal: every task of this node, each of its transitions, and the locks, in one SQLite file.

A transition is durable before the act that it announces. What the journal says is what is true of a task; its log and
its progress file only tell about it.
"""

import json
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from orrery.errors import Cancelled, Failure, ParameterError
from orrery.system import host, process
from orrery.system.sqlite import Database
from orrery.tasks import revert
from orrery.tasks.database import JOURNAL
from orrery.tasks.locks import WAIT_SECONDS, Locks
from orrery.tasks.task import TaskRecord, TaskState, Upid, last_line
from orrery.tasks.tasklog import LogLine, TaskLogs

SELECT_TASK = (
    "SELECT upid, state, operation, boot, worker_pid, worker_start, cancelled, committed, error, status, endtime,"
    " attempts, (SELECT count(*) FROM transition t WHERE t.task = task.serial AND t.state = 'pending') FROM task"
)
_OPEN = " WHERE state != 'ended' OR serial IN (SELECT task FROM transition WHERE state = 'pending') ORDER BY serial"
_FOLLOW_SECONDS = 0.2


class Journal:
    """The journal of one node. Any thread of any process may use it; connections are made as needed.

    `on_transition` is called after each transition of a task became durable, with the name of the transition.
    """

    def __init__(self, path: Path, logs: Path) -> None:
        self.database = Database(path, JOURNAL)
        self.logs = TaskLogs(logs)
        self.locks = Locks(self.database, self._task_dead, self._task_gone)
        self.on_transition: Callable[[str], None] = lambda _name: None
        self._boot = host.boot_id()  # process ids and their start ticks begin anew with each boot

    # --- a task's life, told by its own process

    def begin(self, upid: Upid, operation: dict[str, Any], locks: Sequence[str] = ()) -> bool:
        """Enters a task that starts now; returns whether its locks could be taken at once."""
        with self.database.write() as connection:
            connection.execute(
                "INSERT INTO task (upid, starttime, kind, subject, user, operation, boot, worker_pid, worker_start,"
                " state) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    *(str(upid), upid.starttime, upid.kind, upid.id, upid.user, json.dumps(operation), self._boot),
                    *(upid.pid, upid.pstart, TaskState.RUNNING),
                ),
            )
            taken = self.locks.take_free(connection, locks, str(upid))
        self.on_transition("begin")
        return taken

    def step(self, upid: Upid, name: str, data: dict[str, Any]) -> None:
        """Enters a transition that needs no undo."""
        self._enter(upid, name, data, "noted")

    def before(self, upid: Upid, undo: str, arguments: dict[str, Any]) -> int:
        """Enters an undo record; returns its id."""
        if not revert.known(undo):
            raise Failure(f"there is no undo action '{undo}'")
        return self._enter(upid, undo, arguments, "pending")

    def kept(self, upid: Upid, record: int) -> None:
        """Drops an undo record."""
        with self.database.write() as connection:
            self._mark_one(connection, upid, "kept", record)
        self.on_transition("kept")

    def commit(self, upid: Upid) -> None:
        """Drops all undo records and refuses cancelling from here on. Raises Cancelled when it was asked for before."""
        with self.database.write() as connection:
            self._commit(connection, upid)
            self._insert(connection, upid, "commit", {}, "noted")
        self.on_transition("commit")

    def succeed(self, upid: Upid, status: str) -> None:
        """Ends a task that did its work. Raises Cancelled when that was asked for while it still could be undone."""
        with self.database.write() as connection:
            if self._pending(connection, upid):
                self._commit(connection, upid)
            self._end(connection, upid, status)
        self.on_transition("end")

    def fail(self, upid: Upid, error: str) -> list[revert.UndoRecord]:
        """Enters why a task failed; ends it unless there is something to undo, which is returned, newest first."""
        with self.database.write() as connection:
            records = self._pending(connection, upid)
            connection.execute(
                "UPDATE task SET state = ?, error = coalesce(error, ?), attempts = attempts + ? WHERE upid = ?",
                (TaskState.UNDOING, error, bool(records), str(upid)),
            )
            if not records:
                self._end(connection, upid, error)
        self.on_transition("fail")
        return records

    def undone(self, upid: Upid, record: int) -> None:
        """Enters that an undo record was carried out."""
        with self.database.write() as connection:
            self._mark_one(connection, upid, "undone", record)
        self.on_transition("undone")

    def end_undo(self, upid: Upid, status: str, *, give_up: bool = False) -> None:
        """Ends a task after its undo. Locks stay with it as long as records are left, unless these are given up."""
        with self.database.write() as connection:
            if give_up:
                self._mark_all(connection, upid, "abandoned")
            self._end(connection, upid, status)
        self.on_transition("end")

    # --- a task whose process died

    def claim(self, upid: Upid, worker: process.ProcessId, error: str) -> list[revert.UndoRecord]:
        """Makes `worker` responsible for undoing a dead task; returns what is to be undone, newest first.

        `error` is noted as the task's end unless it told its own. Raises Failure while its process lives.
        """
        with self.database.write() as connection:
            if not self._task_dead(connection, str(upid)):
                raise Failure(f"task {upid} is still running")
            connection.execute(
                "UPDATE task SET worker_pid = ?, worker_start = ?, boot = ?, attempts = attempts + 1,"
                " error = coalesce(error, ?), state = iif(state = ?, ?, state) WHERE upid = ?",
                (worker.pid, worker.start, self._boot, error, TaskState.RUNNING, TaskState.UNDOING, str(upid)),
            )
            records = self._pending(connection, upid)
        self.on_transition("claim")
        return records

    def request_cancel(self, upid: Upid) -> bool:
        """Notes that the task shall stop; False when it has ended or is being undone already.

        Raises Failure when it is past its point of no return, ParameterError when there is no such task.
        """
        with self.database.write() as connection:
            record = self._get(connection, upid)
            if record.state is not TaskState.RUNNING:
                return False
            if record.committed:
                raise Failure("the task is past its point of no return and cannot be cancelled; it is about to finish")
            connection.execute("UPDATE task SET cancelled = 1 WHERE upid = ?", (str(upid),))
        return True

    # --- queries

    def get(self, upid: Upid) -> TaskRecord:
        """The task. Raises ParameterError (parameter `upid`) when it is not known."""
        with self.database.use() as connection:
            return self._get(connection, upid)

    def open_tasks(self) -> list[TaskRecord]:
        """Every task that is not settled: running, dead without an end, or with something left to undo."""
        with self.database.use() as connection:
            return [read_record(row) for row in connection.execute(SELECT_TASK + _OPEN)]

    def by_worker(self, worker: process.ProcessId) -> TaskRecord | None:
        """The task for which a process is, or was, responsible."""
        with self.database.use() as connection:
            row = connection.execute(
                SELECT_TASK + " WHERE worker_pid = ? AND worker_start = ? AND boot = ? ORDER BY serial DESC LIMIT 1",
                (worker.pid, worker.start, self._boot),
            ).fetchone()
        return None if row is None else read_record(row)

    def alive(self, task: TaskRecord) -> bool:
        """Whether the process that is responsible for the task lives; a zombie does not."""
        return task.boot == self._boot and process.alive(task.worker)

    def transitions(self, upid: Upid) -> list[tuple[str, dict[str, Any], str]]:
        """Name, data and state (`noted`, `pending`, `kept`, `dropped`, `undone`, `abandoned`) of each, oldest first."""
        with self.database.use() as connection:
            rows = connection.execute(
                "SELECT name, data, transition.state FROM transition JOIN task ON task = serial"
                " WHERE upid = ? ORDER BY id",
                (str(upid),),
            )
            return [(name, json.loads(data), state) for name, data, state in rows]

    def read_log(self, upid: Upid, start: int = 0, limit: int = 50) -> tuple[list[LogLine], int]:
        """A page of the task's log (`limit` 0: all of it) and the number of its lines. Raises ParameterError."""
        return self.logs.page(upid, start, limit, self._last_line(upid))

    def stream_log(self, upid: Upid) -> Iterator[bytes]:
        """The task's log as a download. Raises ParameterError."""
        return self.logs.stream(upid, self._last_line(upid))

    def follow_log(self, upid: Upid, start: int = 0) -> Iterator[LogLine]:
        """The lines of the log after the first `start`, as they come, until its end. Raises ParameterError."""
        while True:
            last = self._last_line(upid)
            if last is None and self.logs.tail(upid) is None:
                lines: list[LogLine] = []
            else:
                lines = self.logs.page(upid, start, 0, last)[0]
            yield from lines
            start += len(lines)
            if last is not None:
                return
            time.sleep(_FOLLOW_SECONDS)

    def locked(
        self, names: str | Sequence[str], owner: str | None = None, wait: float = WAIT_SECONDS
    ) -> AbstractContextManager[str]:
        """Holds one lock or several during a short change of the core. Raises Locked after `wait` seconds."""
        return self.locks.locked(names, owner, wait)

    # --- within a transaction

    def _enter(self, upid: Upid, name: str, data: dict[str, Any], state: str) -> int:
        with self.database.write() as connection:
            number = self._insert(connection, upid, name, data, state)
        self.on_transition(name)
        return number

    @staticmethod
    def _insert(connection: sqlite3.Connection, upid: Upid, name: str, data: dict[str, Any], state: str) -> int:
        number = connection.execute(
            "INSERT INTO transition (task, at, name, data, state) SELECT serial, ?, ?, ?, ? FROM task WHERE upid = ?",
            (time.time(), name, json.dumps(data), state, str(upid)),
        ).lastrowid
        return int(number or 0)

    @staticmethod
    def _mark_one(connection: sqlite3.Connection, upid: Upid, state: str, number: int) -> None:
        connection.execute(
            "UPDATE transition SET state = ? WHERE state = 'pending' AND id = ? AND task = ?",
            (state, number, _serial(connection, upid)),
        )

    @staticmethod
    def _mark_all(connection: sqlite3.Connection, upid: Upid, state: str) -> None:
        connection.execute(
            "UPDATE transition SET state = ? WHERE state = 'pending' AND task = ?", (state, _serial(connection, upid))
        )

    @staticmethod
    def _pending(connection: sqlite3.Connection, upid: Upid) -> list[revert.UndoRecord]:
        rows = connection.execute(
            "SELECT id, name, data FROM transition WHERE state = 'pending' AND task = ? ORDER BY id DESC",
            (_serial(connection, upid),),
        )
        return [revert.UndoRecord(id_, name, json.loads(data)) for id_, name, data in rows]

    def _commit(self, connection: sqlite3.Connection, upid: Upid) -> None:
        changed = connection.execute(
            "UPDATE task SET committed = 1 WHERE upid = ? AND (committed OR NOT cancelled)", (str(upid),)
        ).rowcount
        if not changed:
            raise Cancelled
        self._mark_all(connection, upid, "dropped")

    def _end(self, connection: sqlite3.Connection, upid: Upid, status: str) -> None:
        connection.execute(
            "UPDATE task SET state = ?, status = ?, endtime = coalesce(endtime, ?) WHERE upid = ?",
            (TaskState.ENDED, status, int(time.time()), str(upid)),
        )
        if not self._pending(connection, upid):
            connection.execute("DELETE FROM lock WHERE owner = ?", (str(upid),))

    @staticmethod
    def _get(connection: sqlite3.Connection, upid: Upid) -> TaskRecord:
        row = connection.execute(SELECT_TASK + " WHERE upid = ?", (str(upid),)).fetchone()
        if row is None:
            raise ParameterError({"upid": "no such task"})
        return read_record(row)

    def _last_line(self, upid: Upid) -> str | None:
        status = self.get(upid).status
        return None if status is None else last_line(status)

    def _task_dead(self, connection: sqlite3.Connection, owner: str) -> bool:
        """Whether no process is responsible for the task any more."""
        row = connection.execute("SELECT boot, worker_pid, worker_start FROM task WHERE upid = ?", (owner,)).fetchone()
        if row is None:
            return True
        boot, pid, start = row
        return boot != self._boot or not process.alive(process.ProcessId(pid, start))

    def _task_gone(self, connection: sqlite3.Connection, owner: str) -> bool:
        """Whether the task is dead and leaves nothing to undo, so that its locks are free."""
        if not self._task_dead(connection, owner):
            return False
        pending = connection.execute(
            "SELECT 1 FROM transition JOIN task ON task = serial WHERE upid = ? AND transition.state = 'pending'",
            (owner,),
        ).fetchone()
        return pending is None


def read_record(row: Sequence[Any]) -> TaskRecord:
    """A row of `SELECT_TASK` as a record."""
    upid, state, operation, boot, pid, start, cancelled, committed, error, status, endtime, attempts, unfinished = row
    return TaskRecord(
        upid=Upid.parse(upid),
        state=TaskState(state),
        operation=operation,
        boot=boot,
        worker_pid=pid,
        worker_start=start,
        cancelled=bool(cancelled),
        committed=bool(committed),
        error=error,
        status=status,
        endtime=endtime,
        attempts=attempts,
        unfinished=unfinished,
    )


def _serial(connection: sqlite3.Connection, upid: Upid) -> int | None:
    row = connection.execute("SELECT serial FROM task WHERE upid = ?", (str(upid),)).fetchone()
    return None if row is None else int(row[0])
