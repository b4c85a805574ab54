# SPDX-License-Identifier: AGPL-3.0-or-later
"""Locks between tasks and the core's own short changes: rows with an owner, given in the order of asking.

A row is a place in the queue for a name; whoever has the first place holds the lock. A place dies with its owner: a
dead request's at once, a dead task's when nothing is left to undo for it. Names are taken in sorted order, so two
owners of several locks never wait for each other.
"""

import itertools
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from orrery.errors import Failure, Locked
from orrery.system import process
from orrery.system.sqlite import Database

WAIT_SECONDS = 10.0
_POLL_FIRST, _POLL_MOST = 0.005, 0.05  # seconds; polls are reads, so they do not load the disk

_REQUEST = "request"
_serial = itertools.count(1)
_active: set[str] = set()
"""Owners of this process whose change still runs: one that is not in here left a row behind when the disk was full."""


def own_identity() -> process.ProcessId:
    """This process."""
    me = process.identity(os.getpid())
    if me is None:
        raise Failure("this process is not in /proc; is /proc mounted for this process namespace?")
    return me


def request_owner() -> str:
    """A new owner for a change that this process makes by itself: `request:PID:START:N`."""
    me = own_identity()
    return f"{_REQUEST}:{me.pid}:{me.start}:{next(_serial)}"


class Locks:
    """The lock table. `task_gone` tells within a transaction whether a task's process is dead with nothing to undo."""

    def __init__(
        self,
        database: Database,
        task_dead: Callable[[sqlite3.Connection, str], bool],
        task_gone: Callable[[sqlite3.Connection, str], bool],
    ) -> None:
        self._database = database
        self._task_dead = task_dead
        self._task_gone = task_gone

    @contextmanager
    def locked(self, names: str | Sequence[str], owner: str | None = None, wait: float = WAIT_SECONDS) -> Iterator[str]:
        """Holds one lock or several for a short change; yields the owner. Raises Locked after `wait` seconds."""
        mine = owner or request_owner()
        wanted = [names] if isinstance(names, str) else list(names)
        _active.add(mine)
        try:
            self.acquire(wanted, mine, wait)
            try:
                yield mine
            finally:
                self.release(mine, wanted)
        finally:
            _active.discard(mine)

    def acquire(
        self, names: Sequence[str], owner: str, wait: float = WAIT_SECONDS, safe_point: Callable[[], None] | None = None
    ) -> None:
        """Takes all locks or none. Raises Locked after `wait` seconds, and whatever `safe_point` raises meanwhile."""
        ordered = sorted(set(names))
        with self._database.write() as connection:
            if self.take_free(connection, ordered, owner):
                return
        end = time.monotonic() + wait
        places: list[str] = []
        try:
            for name in ordered:
                places.append(name)
                self._wait_turn(name, owner, end, wait, safe_point)
        except BaseException:
            self.release(owner, places)
            raise

    def take_free(self, connection: sqlite3.Connection, names: Sequence[str], owner: str) -> bool:
        """Within a transaction: takes all locks if nobody holds or awaits any of them."""
        ahead = [place for name in names for place in self._ahead(connection, name, None)]
        if ahead:
            return False
        now = time.time()
        connection.executemany(
            "INSERT INTO lock (name, owner, held, since) VALUES (?, ?, 1, ?)",
            [(name, owner, now) for name in sorted(set(names))],
        )
        return True

    def release(self, owner: str, names: Sequence[str]) -> None:
        """Gives locks back, or leaves the queue for them; what is not held is no mistake."""
        with self._database.write() as connection:
            connection.executemany("DELETE FROM lock WHERE owner = ? AND name = ?", [(owner, name) for name in names])

    def holder(self, name: str) -> str | None:
        """The owner of a lock, dead or alive: a UPID or `request:PID:START:N`."""
        with self._database.use() as connection:
            row = connection.execute("SELECT owner FROM lock WHERE name = ? AND held = 1", (name,)).fetchone()
        return None if row is None else str(row[0])

    def forget_requests(self) -> int:
        """Frees the locks of requests of other processes; for the start of the core, which is their only home."""
        own = request_owner().rpartition(":")[0]
        with self._database.write() as connection:
            return connection.execute(
                "DELETE FROM lock WHERE owner LIKE 'request:%' AND owner NOT LIKE ?", (f"{own}:%",)
            ).rowcount

    def _wait_turn(self, name: str, owner: str, end: float, wait: float, safe_point: Callable[[], None] | None) -> None:
        with self._database.write() as connection:
            ahead = self._ahead(connection, name, None)
            place = connection.execute(
                "INSERT INTO lock (name, owner, held, since) VALUES (?, ?, ?, ?)", (name, owner, not ahead, time.time())
            ).lastrowid
        pause = _POLL_FIRST
        while ahead:
            if safe_point is not None:
                safe_point()
            if time.monotonic() >= end:
                raise self._timeout(name, ahead[0], wait)
            time.sleep(pause)
            pause = min(_POLL_MOST, pause * 1.5)
            with self._database.use() as connection:
                ahead = self._before(connection, name, place)
                if ahead and not any(self._dead(connection, other, held) for _id, other, held in ahead):
                    continue
            with self._database.write() as connection:
                ahead = self._ahead(connection, name, place)
                if not ahead:
                    connection.execute("UPDATE lock SET held = 1, since = ? WHERE id = ?", (time.time(), place))

    def _before(self, connection: sqlite3.Connection, name: str, place: int | None) -> list[tuple[int, str, bool]]:
        query = "SELECT id, owner, held FROM lock WHERE name = ? AND (? IS NULL OR id < ?) ORDER BY id"
        rows = connection.execute(query, (name, place, place))
        return [(int(number), str(owner), bool(held)) for number, owner, held in rows]

    def _ahead(self, connection: sqlite3.Connection, name: str, place: int | None) -> list[tuple[int, str, bool]]:
        """Who has an earlier place, after the places of the dead were removed."""
        rows = []
        for row in self._before(connection, name, place):
            if self._dead(connection, row[1], row[2]):
                connection.execute("DELETE FROM lock WHERE id = ?", (row[0],))
            else:
                rows.append(row)
        return rows

    def _dead(self, connection: sqlite3.Connection, owner: str, held: bool) -> bool:
        if owner.startswith(f"{_REQUEST}:"):
            pid, start = (int(part) for part in owner.split(":")[1:3])
            if pid == os.getpid() and owner not in _active:
                return True
            return not process.alive(process.ProcessId(pid, start))
        # A dead task that only waited has nothing of this lock to undo.
        return self._task_gone(connection, owner) if held else self._task_dead(connection, owner)

    def _timeout(self, name: str, first: tuple[int, str, bool], wait: float) -> Locked:
        owner = first[1]
        who = f"a request of process {owner.split(':')[1]}" if owner.startswith(f"{_REQUEST}:") else f"task {owner}"
        return Locked(f"can't lock file '{name}' - got timeout after {wait:g} s: held by {who}")
