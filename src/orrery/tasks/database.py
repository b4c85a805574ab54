# SPDX-License-Identifier: AGPL-3.0-or-later
"""The journal's SQLite file: connections per thread, durable transactions, and SQLite's errors in our words.

WAL with full synchronisation: a committed transaction survives a power cut. Many processes write (every task does), so
a busy database is waited for. SQLite keeps the state of its file locks in memory that a fork would copy while the
kernel does not pass the locks on; so every connection is closed before a fork, and each side opens new ones.
"""

import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orrery.errors import Corrupt, Failure, Locked, NoSpace, OrreryError

APPLICATION_ID = 0x4F54534B
FORMAT = 1
BUSY_SECONDS = 30.0

SCHEMA = """
CREATE TABLE task (
    serial INTEGER PRIMARY KEY AUTOINCREMENT, upid TEXT NOT NULL UNIQUE, starttime INTEGER NOT NULL,
    kind TEXT NOT NULL, subject TEXT NOT NULL, user TEXT NOT NULL, operation TEXT NOT NULL, boot TEXT NOT NULL,
    worker_pid INTEGER NOT NULL, worker_start INTEGER NOT NULL,
    state TEXT NOT NULL, cancelled INTEGER NOT NULL DEFAULT 0, committed INTEGER NOT NULL DEFAULT 0,
    error TEXT, status TEXT, endtime INTEGER, attempts INTEGER NOT NULL DEFAULT 0) STRICT;
CREATE INDEX task_open ON task (state) WHERE state != 'ended';
CREATE TABLE transition (
    id INTEGER PRIMARY KEY AUTOINCREMENT, task INTEGER NOT NULL REFERENCES task (serial) ON DELETE CASCADE,
    at REAL NOT NULL, name TEXT NOT NULL, data TEXT NOT NULL, state TEXT NOT NULL) STRICT;
CREATE INDEX transition_task ON transition (task);
CREATE INDEX transition_pending ON transition (task) WHERE state = 'pending';
CREATE TABLE lock (
    id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL, owner TEXT NOT NULL, held INTEGER NOT NULL,
    since REAL NOT NULL) STRICT;
CREATE UNIQUE INDEX lock_held ON lock (name) WHERE held = 1;
CREATE INDEX lock_name ON lock (name, id);
CREATE INDEX lock_owner ON lock (owner);
"""


class _Connection(sqlite3.Connection):
    """sqlite3's own class cannot be referenced weakly."""


class _ForkGate:
    """Statements pass side by side, a fork only alone and with every connection closed."""

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._inside = 0
        self.open: weakref.WeakSet[_Connection] = weakref.WeakSet()

    def enter(self) -> None:
        with self._changed:
            self._inside += 1

    def leave(self) -> None:
        with self._changed:
            self._inside -= 1
            self._changed.notify_all()

    def before_fork(self) -> None:
        self._changed.acquire()
        while self._inside:
            self._changed.wait()
        for connection in list(self.open):
            connection.close()
        self.open.clear()

    def after_fork(self) -> None:
        self._changed.release()


_gate = _ForkGate()
os.register_at_fork(before=_gate.before_fork, after_in_parent=_gate.after_fork, after_in_child=_gate.after_fork)


class Database:
    """One database file. Opening makes it when it is absent; raises Corrupt when it cannot be trusted."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._local = threading.local()
        if not path.exists():
            _create(path)
        elif path.stat().st_size == 0:
            raise _damaged(path, "the file is empty")
        with self.read():
            pass

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """The thread's connection, for queries that each see their own state."""
        _gate.enter()
        try:
            yield self._connection()
        except sqlite3.Error as error:
            raise _translate(error, self.path) from error
        finally:
            _gate.leave()

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """A transaction that is the only writer: durable when the block ends, undone by any exception."""
        with self.read() as connection:
            _begin(connection)
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    def close(self) -> None:
        """Closes the calling thread's connection."""
        _gate.enter()
        try:
            connection = self._local.__dict__.pop("connection", None)
            if connection is not None:
                _gate.open.discard(connection)
                connection.close()
        finally:
            _gate.leave()

    def _connection(self) -> sqlite3.Connection:
        connection: _Connection | None = self._local.__dict__.get("connection")
        if connection is None or connection not in _gate.open:
            connection = _open(self.path)
            self._local.connection = connection
        return connection


def _begin(connection: sqlite3.Connection) -> None:
    """Becomes the only writer. SQLite gives up early in some races (recovery), hence the further tries."""
    end = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > end:
                raise
        else:
            return


def _open(path: Path) -> _Connection:
    # Another thread closes the connection before a fork, hence check_same_thread.
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=rw",
        uri=True,
        timeout=BUSY_SECONDS,
        isolation_level=None,
        check_same_thread=False,
        factory=_Connection,
    )
    try:
        if connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
            raise _damaged(path, "it is an SQLite file, but not a journal")
        found = connection.execute("PRAGMA user_version").fetchone()[0]
        if found > FORMAT:
            raise Failure(f"the journal '{path}' is of a newer version (format {found}, this one knows {FORMAT})")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA cache_size = -1024")
    except BaseException:
        connection.close()
        raise
    _gate.open.add(connection)
    return connection


def _create(path: Path) -> None:
    """Makes an empty journal that appears complete or not at all, mode 0600; another process may be faster."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))
        connection = sqlite3.connect(fresh, isolation_level=None)
        try:
            connection.executescript(SCHEMA)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {FORMAT}")
            connection.execute("PRAGMA journal_mode = WAL")
        finally:
            connection.close()
        _sync(fresh)
        try:
            os.link(fresh, path)
        except FileExistsError:
            return
        _sync(path.parent)
    except sqlite3.Error as error:
        raise _translate(error, path) from error
    except OSError as error:
        raise Failure(f"cannot create the journal '{path}': {error.strerror}") from error
    finally:
        fresh.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _translate(error: sqlite3.Error, path: Path) -> OrreryError:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT):
        return _damaged(path, str(error))
    if code == sqlite3.SQLITE_FULL:
        return NoSpace(f"no space left for the journal '{path}'; free some space and try again")
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return Locked(f"the journal '{path}' stayed locked by another process; try again")
    return Failure(f"the journal '{path}' cannot be used: {error}")


def _damaged(path: Path, reason: str) -> Corrupt:
    return Corrupt(
        f"the journal '{path}' is damaged ({reason}). It was left as it is. Stop orrery, keep a copy of this file and "
        f"of its -wal and -shm neighbours, then put back a backup or try: sqlite3 '{path}' .recover"
    )
