# SPDX-License-Identifier: AGPL-3.0-or-later
"""The store of a single node: one SQLite file in WAL mode, synced at every commit, shared by all its processes.

Tables: `entries` (the keys as they are), `changes` (the log of revisions, cut by count), `leases`, and `meta` (epoch,
newest revision, the revision up to which the log was cut). Leases that ended are cleared by whoever looks next.
"""

import sqlite3
from collections.abc import Sequence
from pathlib import Path

from orrery.store.base import Change, Condition, Delete, Entry, Put
from orrery.store.lease import Lease, LeaseClock, SystemClock
from orrery.store.table import beyond_history, check_operations, prefix_end
from orrery.system.sqlite import Database, Kind

SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE entries (key TEXT PRIMARY KEY, value BLOB NOT NULL, revision INTEGER NOT NULL, created INTEGER NOT NULL,
    version INTEGER NOT NULL, lease INTEGER) WITHOUT ROWID;
CREATE INDEX entries_lease ON entries (lease) WHERE lease IS NOT NULL;
CREATE TABLE changes (revision INTEGER NOT NULL, key TEXT NOT NULL, value BLOB, lease INTEGER,
    PRIMARY KEY (revision, key)) WITHOUT ROWID;
CREATE TABLE leases (id INTEGER PRIMARY KEY AUTOINCREMENT, ttl REAL NOT NULL, boot TEXT NOT NULL,
    deadline REAL NOT NULL, wall REAL NOT NULL);
INSERT INTO meta VALUES ('epoch', lower(hex(randomblob(16)))), ('revision', 0), ('compacted', 0);
"""

STORE = Kind("store", 0x4F525259, 1, SCHEMA)

ENTRY_COLUMNS = "key, value, revision, created, version, lease"


class SqliteStore:
    """A `Store` in the file `path`, made when it is missing. `history` is how many revisions the change log keeps.

    Raises `Corrupt` for a file that is damaged or something else, `Locked` when another process holds the file for
    longer than 30 s, `NoSpace` on a full disk, `Failure` for whatever else the file system refuses.
    """

    def __init__(self, path: Path, *, history: int = 10_000, clock: LeaseClock | None = None) -> None:
        self.path = path
        self._history = history
        self._clock = clock or SystemClock()
        self._database = Database(path, STORE)
        self._epoch = str(self._meta("epoch"))

    def epoch(self) -> str:
        return self._epoch

    def revision(self) -> int:
        # One statement: the mirror of every process asks this twenty times a second.
        with self._database.use() as connection:
            newest, due = connection.execute(
                "SELECT value, EXISTS (SELECT 1 FROM leases WHERE deadline <= ? OR boot <> ?)"
                " FROM meta WHERE name = 'revision'",
                (self._clock.elapsed(), self._clock.boot()),
            ).fetchone()
        if due:
            self._expire()
            return int(self._meta("revision"))
        return int(newest)

    def get(self, key: str) -> Entry | None:
        self._expire()
        with self._database.use() as connection:
            row = connection.execute(f"SELECT {ENTRY_COLUMNS} FROM entries WHERE key = ?", (key,)).fetchone()  # noqa: S608
        return Entry(*row) if row else None

    def range(self, prefix: str, *, after: str | None = None, limit: int | None = None) -> list[Entry]:
        self._expire()
        query = f"SELECT {ENTRY_COLUMNS} FROM entries WHERE key >= ?"  # noqa: S608
        values: list[str | int] = [prefix]
        end = prefix_end(prefix)
        if end is not None:
            query += " AND key < ?"
            values.append(end)
        if after is not None:
            query += " AND key > ?"
            values.append(after)
        values.append(-1 if limit is None else max(limit, 0))
        with self._database.use() as connection:
            return [Entry(*row) for row in connection.execute(query + " ORDER BY key LIMIT ?", values)]

    def transact(self, conditions: Sequence[Condition], operations: Sequence[Put | Delete]) -> int | None:
        check_operations(operations)
        with self._database.write() as connection:
            self._expire_in(connection)
            for condition in conditions:
                row = connection.execute("SELECT revision FROM entries WHERE key = ?", (condition.key,)).fetchone()
                if (row[0] if row else 0) != condition.revision:
                    return None
            return self._carry_out(connection, operations)

    def put(self, key: str, value: bytes) -> int:
        revision = self.transact((), [Put(key, value)])
        assert revision is not None  # noqa: S101 (no condition was given)
        return revision

    def delete(self, key: str) -> bool:
        with self._database.write() as connection:
            self._expire_in(connection)
            present = connection.execute("SELECT 1 FROM entries WHERE key = ?", (key,)).fetchone() is not None
            if present:
                self._carry_out(connection, [Delete(key)])
            return present

    def changes(self, since: int, limit: int = 1000) -> list[Change]:
        self._expire()
        with self._database.read() as connection:
            meta = dict(connection.execute("SELECT name, value FROM meta"))
            if since < meta["compacted"] or since > meta["revision"]:
                raise beyond_history(since, meta["compacted"], meta["revision"])
            rows = connection.execute(
                "SELECT revision, key, value, lease FROM changes WHERE revision > ? ORDER BY revision, key LIMIT ?",
                (since, max(limit, 1)),
            ).fetchall()
            if len(rows) >= limit:
                # The last revision may go on beyond the limit.
                last = rows[-1]
                rows += connection.execute(
                    "SELECT revision, key, value, lease FROM changes WHERE revision = ? AND key > ? ORDER BY key",
                    last[:2],
                )
        return [Change(*row) for row in rows]

    def grant(self, ttl: float) -> int:
        lease = Lease.begin(self._clock, ttl)
        with self._database.write() as connection:
            cursor = connection.execute(
                "INSERT INTO leases (ttl, boot, deadline, wall) VALUES (?, ?, ?, ?)",
                (lease.ttl, lease.boot, lease.deadline, lease.wall),
            )
            assert cursor.lastrowid is not None  # noqa: S101 (set by every INSERT)
            return cursor.lastrowid

    def renew(self, lease: int) -> bool:
        with self._database.write() as connection:
            self._expire_in(connection)
            row = connection.execute("SELECT ttl FROM leases WHERE id = ?", (lease,)).fetchone()
            if row is None:
                return False
            _write_lease(connection, lease, Lease.begin(self._clock, row[0]))
            return True

    def revoke(self, lease: int) -> None:
        with self._database.write() as connection:
            self._end_lease(connection, lease)

    def close(self) -> None:
        self._database.close()

    def check(self) -> None:
        """Reads the whole file and raises `Corrupt` when its structure is damaged; for the start of the node."""
        with self._database.use() as connection:
            found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if found != "ok":
            raise self._database.damaged(found)

    def _meta(self, name: str) -> str | int:
        with self._database.use() as connection:
            row = connection.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        if row is None or not isinstance(row[0], str | int):
            raise self._database.damaged(f"it has no {name}")
        return row[0]

    def _carry_out(self, connection: sqlite3.Connection, operations: Sequence[Put | Delete]) -> int:
        """Applies the operations within the open transaction and returns the newest revision."""
        newest: int = connection.execute("SELECT value FROM meta WHERE name = 'revision'").fetchone()[0]
        revision = newest + 1
        changed = False
        for operation in operations:
            if isinstance(operation, Delete):
                gone = connection.execute("DELETE FROM entries WHERE key = ?", (operation.key,)).rowcount
                if not gone:
                    continue
                value, lease = None, None
            else:
                value, lease = operation.value, operation.lease
                if lease is not None and not _lease_exists(connection, lease):
                    raise ValueError(f"no lease {lease}")
                connection.execute(
                    "INSERT INTO entries (key, value, revision, created, version, lease) VALUES (?, ?, ?, ?, 1, ?)"
                    " ON CONFLICT (key) DO UPDATE SET value = excluded.value, revision = excluded.revision,"
                    " version = version + 1, lease = excluded.lease",
                    (operation.key, value, revision, revision, lease),
                )
            connection.execute("INSERT INTO changes VALUES (?, ?, ?, ?)", (revision, operation.key, value, lease))
            changed = True
        if not changed:
            return newest
        connection.execute("UPDATE meta SET value = ? WHERE name = 'revision'", (revision,))
        self._compact(connection, revision)
        return revision

    def _compact(self, connection: sqlite3.Connection, revision: int) -> None:
        """Cuts the log in steps of a quarter of its length, so that most transactions need not touch its old end."""
        compacted: int = connection.execute("SELECT value FROM meta WHERE name = 'compacted'").fetchone()[0]
        if revision - compacted > self._history + self._history // 4:
            cut = revision - self._history
            connection.execute("DELETE FROM changes WHERE revision <= ?", (cut,))
            connection.execute("UPDATE meta SET value = ? WHERE name = 'compacted'", (cut,))

    def _expire(self) -> None:
        """Clears ended leases; a read only when there is nothing to clear."""
        with self._database.use() as connection:
            due = self._due(connection)
        if due:
            with self._database.write() as connection:
                self._expire_in(connection)

    def _expire_in(self, connection: sqlite3.Connection) -> None:
        for number, lease in self._due(connection):
            if lease.ended(self._clock):
                self._end_lease(connection, number)
            else:
                _write_lease(connection, number, lease.rebased(self._clock))

    def _due(self, connection: sqlite3.Connection) -> list[tuple[int, Lease]]:
        """Leases that ended or that still count in the time of an earlier boot."""
        rows = connection.execute(
            "SELECT id, ttl, boot, deadline, wall FROM leases WHERE deadline <= ? OR boot <> ?",
            (self._clock.elapsed(), self._clock.boot()),
        )
        return [(row[0], Lease(*row[1:])) for row in rows]

    def _end_lease(self, connection: sqlite3.Connection, number: int) -> None:
        connection.execute("DELETE FROM leases WHERE id = ?", (number,))
        keys = connection.execute("SELECT key FROM entries WHERE lease = ? ORDER BY key", (number,)).fetchall()
        self._carry_out(connection, [Delete(key) for (key,) in keys])


def _lease_exists(connection: sqlite3.Connection, number: int) -> bool:
    return connection.execute("SELECT 1 FROM leases WHERE id = ?", (number,)).fetchone() is not None


def _write_lease(connection: sqlite3.Connection, number: int, lease: Lease) -> None:
    connection.execute(
        "UPDATE leases SET ttl = ?, boot = ?, deadline = ?, wall = ? WHERE id = ?",
        (lease.ttl, lease.boot, lease.deadline, lease.wall, number),
    )
