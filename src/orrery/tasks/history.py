# SPDX-License-Identifier: AGPL-3.0-or-later
"""Lists of tasks, newest first, and how long they are kept."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from orrery.errors import OrreryError
from orrery.tasks.journal import SELECT_TASK, Journal, read_record
from orrery.tasks.task import TaskRecord, Upid

RECENT = 25
KEEP_COUNT = 20_000
KEEP_SECONDS = 366 * 86_400.0

_COUNT = "SELECT count(*) FROM task WHERE "
_WHERE, _PAGE = " WHERE ", " ORDER BY serial DESC LIMIT ? OFFSET ?"

_STATUS_TYPES = {
    "ok": "status = 'OK'",
    "warning": "status GLOB 'WARNINGS: *'",
    "unknown": "(status = 'unexpected status' OR status GLOB 'unexpected status (*')",
    "error": "NOT (status = 'OK' OR status GLOB 'WARNINGS: *' OR status = 'unexpected status'"
    " OR status GLOB 'unexpected status (*')",
}


@dataclass(frozen=True, slots=True)
class TaskQuery:
    """What `GET /nodes/{node}/tasks` may ask for; times are seconds since 1970."""

    start: int = 0
    limit: int = 50
    vmid: int | None = None
    typefilter: str | None = None
    userfilter: str | None = None
    """A part of the user's name, in any case."""
    statusfilter: Sequence[str] = ()
    """Any of ok, warning, error, unknown; running tasks have none of these."""
    errors: bool = False
    """Leave out what ended OK."""
    source: str = "archive"
    """archive: ended tasks, active: running ones, all: both."""
    since: int | None = None
    until: int | None = None
    own: str | None = None
    """Only tasks of this user or token, and of this user's tokens: for who may not see everybody's."""

    def conditions(self) -> tuple[str, list[Any]]:
        """The WHERE clause and its values."""
        parts: list[str] = ["1"]
        values: list[Any] = []

        def add(condition: str, *more: Any) -> None:
            parts.append(condition)
            values.extend(more)

        if self.source != "all":
            add("(state = 'ended') = ?", self.source == "archive")
        if self.vmid is not None:
            add("subject = ?", str(self.vmid))
        if self.typefilter is not None:
            add("kind = ?", self.typefilter)
        if self.userfilter is not None:
            add("instr(lower(user), lower(?))", self.userfilter)
        if self.since is not None:
            add("starttime >= ?", self.since)
        if self.until is not None:
            add("starttime <= ?", self.until)
        if self.errors:
            add("status IS NOT 'OK'")
        if self.statusfilter:
            add("(" + " OR ".join(_STATUS_TYPES[name] for name in self.statusfilter) + ")")
        if self.own is not None:
            # A user's name may itself look like a token of a shorter one, but no token has an `@`.
            size = len(self.own) + 1
            token = "substr(user, 1, ?) = ? AND NOT instr(substr(user, ?), '@')"
            add(f"(user = ? OR {token})", self.own, size, f"{self.own}!", size)
        return " AND ".join(parts), values


def find(journal: Journal, query: TaskQuery) -> tuple[list[TaskRecord], int]:
    """The page of tasks that a query asks for, newest first, and how many there are in all. `limit` 0 gives none."""
    where, values = query.conditions()
    with journal.database.use() as connection:
        total = connection.execute(_COUNT + where, values).fetchone()[0]
        rows = connection.execute(
            SELECT_TASK + _WHERE + where + _PAGE,
            [*values, query.limit, query.start],
        )
        return [read_record(row) for row in rows], int(total)


def recent(journal: Journal, limit: int = RECENT, own: str | None = None) -> list[TaskRecord]:
    """All running tasks and the `limit` that were begun last among the ended, newest first: `GET /cluster/tasks`."""
    running, _ = find(journal, TaskQuery(source="active", limit=-1, own=own))
    ended, _ = find(journal, TaskQuery(source="archive", limit=limit, own=own))
    return running + ended


def retain(journal: Journal, count: int = KEEP_COUNT, seconds: float = KEEP_SECONDS) -> int:
    """Forgets settled tasks, log first, that ended more than `seconds` ago or are beyond the newest `count`.

    Returns how many were forgotten. Raises what the journal raises; a log that cannot be removed keeps its task.
    """
    with journal.database.use() as connection:
        rows = connection.execute(
            "SELECT serial, upid FROM task WHERE state = 'ended'"
            " AND NOT EXISTS (SELECT 1 FROM transition t WHERE t.task = serial AND t.state = 'pending')"
            " AND (endtime < ? OR serial <= (SELECT serial FROM task ORDER BY serial DESC LIMIT 1 OFFSET ?))",
            (time.time() - seconds, count),
        ).fetchall()
    forgotten = []
    for serial, upid in rows:
        try:
            journal.logs.remove(Upid.parse(upid))
        except OrreryError:
            continue
        forgotten.append((serial,))
    if forgotten:
        with journal.database.write() as connection:
            connection.executemany("DELETE FROM task WHERE serial = ?", forgotten)
    return len(forgotten)
