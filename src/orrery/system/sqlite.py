# SPDX-License-Identifier: AGPL-3.0-or-later
"""SQLite files that survive threads, forks, kills and power cuts, and SQLite's errors in our words.

WAL with full synchronisation: a committed transaction is durable. Many processes write, so a busy file is waited for.
SQLite keeps its file locks per process in memory that a fork copies, while the kernel does not pass the locks on: a
child that inherits an open database believes in locks that it does not hold. So nothing is open while a fork happens:
`fork` waits for running statements, all connections are closed, and both processes open new ones when they need them.
"""

import errno
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from orrery.errors import Corrupt, Failure, Locked, NoSpace, OrreryError
from orrery.system.files import sync_dir

BUSY_SECONDS = 30.0
_NEEDED = 1 << 16  # bytes: the index of the write-ahead log alone has 32 KiB


@dataclass(frozen=True)
class Kind:
    """What a file is: `noun` names it in errors, `application_id` and `format` stand in its header."""

    noun: str
    application_id: int
    format: int
    schema: str


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


class Database:
    """One file of a kind, made when it is absent: a connection per thread and process, opened on first use.

    Raises `Corrupt` when the file cannot be trusted.
    """

    def __init__(self, path: Path, kind: Kind) -> None:
        self.path = path
        self.kind = kind
        self._local = threading.local()
        if not path.exists():
            self._create()
        elif path.stat().st_size == 0:
            raise self.damaged("the file is empty")
        with self.use():
            pass

    @contextmanager
    def use(self) -> Iterator[sqlite3.Connection]:
        """The thread's connection, for statements that each see their own state; SQLite's errors leave as ours."""
        _gate.enter()
        try:
            yield self._connection()
        except sqlite3.Error as error:
            raise self._translate(error) from error
        finally:
            _gate.leave()

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """Several reads that see the same state."""
        with self.use() as connection:
            connection.execute("BEGIN")
            try:
                yield connection
            finally:
                connection.execute("ROLLBACK")

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """A transaction that is the only writer: durable when the block ends, undone by any exception."""
        with self.use() as connection:
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

    def damaged(self, reason: str) -> Corrupt:
        """The error for a file that cannot be trusted; nothing is ever repaired or reset by itself."""
        return Corrupt(
            f"the {self.kind.noun} '{self.path}' is damaged ({reason}). It was left as it is. Stop orrery, keep a copy "
            f"of this file and of its -wal and -shm neighbours, then put back a backup or try: "
            f"sqlite3 '{self.path}' .recover"
        )

    def _connection(self) -> sqlite3.Connection:
        connection: _Connection | None = self._local.__dict__.get("connection")
        if connection is None or connection not in _gate.open:
            connection = self._open()
            self._local.connection = connection
        return connection

    def _open(self) -> _Connection:
        """Opens the file and makes sure that it is one of its kind. Raises `sqlite3.Error`, `Corrupt`, `Failure`."""
        # Another thread closes the connection before a fork, hence check_same_thread.
        connection = sqlite3.connect(
            f"{self.path.absolute().as_uri()}?mode=rw",
            uri=True,
            timeout=BUSY_SECONDS,
            isolation_level=None,
            check_same_thread=False,
            factory=_Connection,
        )
        try:
            if connection.execute("PRAGMA application_id").fetchone()[0] != self.kind.application_id:
                raise self.damaged(f"it is an SQLite file, but not a {self.kind.noun}")
            found = connection.execute("PRAGMA user_version").fetchone()[0]
            if found > self.kind.format:
                versions = f"format {found}, this one knows {self.kind.format}"
                raise Failure(f"the {self.kind.noun} '{self.path}' is of a newer version ({versions})")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute("PRAGMA cache_size = -1024")
        except BaseException:
            connection.close()
            raise
        _gate.open.add(connection)
        return connection

    def _create(self) -> None:
        """Makes an empty file that appears complete or not at all, mode 0600; another process may be faster."""
        path = self.path
        fresh = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.new")
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            fresh.unlink(missing_ok=True)
            os.close(os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))
            self._fill(fresh)
            _sync(fresh)
            try:
                os.link(fresh, path)
            except FileExistsError:
                return
            sync_dir(path.parent)
        except sqlite3.Error as error:
            raise self._translate(error) from error
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise NoSpace(f"no space left to create the {self.kind.noun} '{path}'") from error
            raise Failure(f"cannot create the {self.kind.noun} '{path}': {error.strerror}") from error
        finally:
            with suppress(OSError):
                fresh.unlink()

    def _fill(self, fresh: Path) -> None:
        connection = sqlite3.connect(fresh, isolation_level=None)
        try:
            connection.executescript(self.kind.schema)
            connection.execute(f"PRAGMA application_id = {self.kind.application_id}")
            connection.execute(f"PRAGMA user_version = {self.kind.format}")
            connection.execute("PRAGMA journal_mode = WAL")
        finally:
            connection.close()

    def _translate(self, error: sqlite3.Error) -> OrreryError:
        """What an SQLite error means for whoever runs the node."""
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        name = f"the {self.kind.noun} '{self.path}'"
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT):
            return self.damaged(str(error))
        if code == sqlite3.SQLITE_FULL or (code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN) and self._full()):
            return NoSpace(f"no space left for {name}: nothing was changed; free some space and try again")
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return Locked(f"{name} stayed locked by another process for {BUSY_SECONDS:.0f} s; try again")
        if code == sqlite3.SQLITE_READONLY:
            return Failure(f"{name} cannot be written: its file system is read-only; the kernel's log may tell why")
        if code == sqlite3.SQLITE_IOERR:
            return Failure(f"{name} cannot be used ({error}): its disk is broken or read-only; see the kernel's log")
        return Failure(f"{name} cannot be used: {error}")

    def _full(self) -> bool:
        """Whether the file system has no room for the files that SQLite needs beside its own, even to read."""
        try:
            found = os.statvfs(self.path.parent)
        except OSError:
            return False
        return found.f_bavail * found.f_frsize < _NEEDED


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


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
