# SPDX-License-Identifier: AGPL-3.0-or-later
"""SQLite connections that survive threads and forks, and SQLite's errors in our words.

SQLite keeps its file locks per process in memory that a fork copies, while the kernel does not pass the locks on: a
child that inherits an open database believes in locks that it does not hold. So nothing is open while a fork happens:
`fork` waits for running statements, all connections are closed, and both processes open new ones when they need them.
"""

import errno
import os
import sqlite3
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from orrery.errors import Corrupt, Failure, Locked, NoSpace, OrreryError

APPLICATION_ID = 0x4F525259
FORMAT = 1
BUSY_SECONDS = 30.0

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


class _Connection(sqlite3.Connection):
    """sqlite3's own class cannot be referenced weakly."""


class _Gate:
    """Lets statements pass side by side and a fork only alone."""

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._inside = 0
        self._forking = False
        self.open: weakref.WeakSet[_Connection] = weakref.WeakSet()

    def enter(self) -> None:
        with self._changed:
            while self._forking:
                self._changed.wait()
            self._inside += 1

    def leave(self) -> None:
        with self._changed:
            self._inside -= 1
            if self._forking:
                self._changed.notify_all()

    def before_fork(self) -> None:
        self._changed.acquire()
        while self._forking:
            self._changed.wait()
        self._forking = True
        while self._inside:
            self._changed.wait()
        for connection in list(self.open):
            connection.close()
        self.open.clear()

    def after_fork(self) -> None:
        self._forking = False
        self._changed.notify_all()
        self._changed.release()


_gate = _Gate()
os.register_at_fork(before=_gate.before_fork, after_in_parent=_gate.after_fork, after_in_child=_gate.after_fork)


def translate(error: sqlite3.Error, path: Path) -> OrreryError:
    """What an SQLite error means for whoever runs the node."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT):
        return damaged(path, str(error))
    if code == sqlite3.SQLITE_FULL:
        return NoSpace(f"no space left for the store '{path}': nothing was changed; free some space and try again")
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return Locked(f"the store '{path}' stayed locked by another process for {BUSY_SECONDS:.0f} s; try again")
    return Failure(f"the store '{path}' cannot be used: {error}")


def damaged(path: Path, reason: str) -> Corrupt:
    """The error for a file that cannot be trusted; nothing is ever repaired or reset by itself."""
    return Corrupt(
        f"the store '{path}' is damaged ({reason}). It was left as it is. Stop orrery, keep a copy of this file and of "
        f"its -wal and -shm neighbours, then put back a backup or try: sqlite3 '{path}' .recover"
    )


class Connections:
    """The connections to one database file: one per thread, opened on first use."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._local = threading.local()
        if not path.exists():
            _create(path)
        elif path.stat().st_size == 0:
            raise damaged(path, "the file is empty")

    @contextmanager
    def use(self) -> Iterator[sqlite3.Connection]:
        """The thread's connection; SQLite's errors leave as ours."""
        _gate.enter()
        try:
            yield self._connection()
        except sqlite3.Error as error:
            raise translate(error, self.path) from error
        finally:
            _gate.leave()

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """A transaction that is the only writer; committed durably at the end, rolled back by any exception."""
        with self.use() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """Several reads that see the same state."""
        with self.use() as connection:
            connection.execute("BEGIN")
            try:
                yield connection
            finally:
                connection.execute("ROLLBACK")

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


def _open(path: Path) -> _Connection:
    """Opens an existing store and makes sure that it is one. Raises `sqlite3.Error`, `Corrupt`, `Failure`."""
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
            raise damaged(path, "it is an SQLite file, but not a store")
        found = connection.execute("PRAGMA user_version").fetchone()[0]
        if found > FORMAT:
            raise Failure(f"the store '{path}' is of a newer version (format {found}, this one knows {FORMAT})")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA cache_size = -1024")
    except BaseException:
        connection.close()
        raise
    _gate.open.add(connection)
    return connection


def _create(path: Path) -> None:
    """Makes an empty store that appears at `path` complete or not at all, mode 0600; somebody else may be faster."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        fresh.unlink(missing_ok=True)
        os.close(os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
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
        raise translate(error, path) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpace(f"no space left to create the store '{path}'") from error
        raise Failure(f"cannot create the store '{path}': {error.strerror}") from error
    finally:
        with suppress(OSError):
            fresh.unlink()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
