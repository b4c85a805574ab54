# SPDX-License-Identifier: AGPL-3.0-or-later
"""All keys of a store in memory, following every writer: what the core answers its reads from.

A `Mirror` is itself a `Store`: reads come from memory, writes go through to the store and are visible in memory when
they return. Writes of other processes appear within one polling interval. Listeners hear of every change exactly once
and in order, whoever made it.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence

import structlog

from orrery.errors import OrreryError
from orrery.store.base import Change, Compacted, Condition, Delete, Entry, Put, Store
from orrery.store.table import Table

Listener = Callable[[Sequence[Change]], None]

POLL_SECONDS = 0.05
RETRY_SECONDS = 1.0
BATCH = 1000

log = structlog.get_logger()


class Mirror:
    """Reads of `store` from memory. `start` follows it from a thread, which a fork does not take along."""

    def __init__(self, store: Store, *, interval: float = POLL_SECONDS) -> None:
        self.store = store
        self._interval = interval
        self._state = threading.Condition(threading.RLock())
        self._polling = threading.RLock()
        self._delivering = False
        self._undelivered: deque[Sequence[Change]] = deque()
        self._listeners: list[Listener] = []
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._table, self._revision = _load(store)

    def start(self) -> None:
        """Begins to follow other processes' writes."""
        self._stop.clear()
        self._thread = threading.Thread(target=self._follow, name="store-mirror", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the following; memory stays as it is."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Calls `listener` with each batch of changes; the function that is returned ends that.

        A listener runs in whichever thread saw the change, must be quick, and may read and write the mirror.
        """
        with self._state:
            self._listeners.append(listener)

        def unsubscribe() -> None:
            with self._state:
                if listener in self._listeners:
                    self._listeners.remove(listener)

        return unsubscribe

    def sync(self) -> int:
        """Takes over everything that was written until now, by whomever; returns the revision reached."""
        with self._polling:
            newest = self.store.revision()
            if newest < self._revision:
                # An older copy of the file was put back.
                self._reload()
            while self._revision < newest:
                self._take_over()
            self._deliver()
            return self._revision

    def wait_revision(self, revision: int, timeout: float) -> bool:
        """Waits until memory holds `revision` or a later one; False when `timeout` seconds were not enough."""
        with self._state:
            return self._state.wait_for(lambda: self._revision >= revision, timeout)

    def epoch(self) -> str:
        return self.store.epoch()

    def revision(self) -> int:
        """The newest revision that memory holds."""
        with self._state:
            return self._revision

    def get(self, key: str) -> Entry | None:
        with self._state:
            return self._table.get(key)

    def range(self, prefix: str, *, after: str | None = None, limit: int | None = None) -> list[Entry]:
        with self._state:
            return self._table.range(prefix, after, limit)

    def transact(self, conditions: Sequence[Condition], operations: Sequence[Put | Delete]) -> int | None:
        revision = self.store.transact(conditions, operations)
        # Also after a failed condition: whoever reads again to try again must see what stood in the way.
        self.sync()
        return revision

    def put(self, key: str, value: bytes) -> int:
        revision = self.store.put(key, value)
        self.sync()
        return revision

    def delete(self, key: str) -> bool:
        present = self.store.delete(key)
        self.sync()
        return present

    def changes(self, since: int, limit: int = BATCH) -> list[Change]:
        return self.store.changes(since, limit)

    def grant(self, ttl: float) -> int:
        return self.store.grant(ttl)

    def renew(self, lease: int) -> bool:
        return self.store.renew(lease)

    def revoke(self, lease: int) -> None:
        self.store.revoke(lease)
        self.sync()

    def close(self) -> None:
        self.stop()
        self.store.close()

    def _take_over(self) -> None:
        """One batch of the change log, or everything anew when the log no longer reaches back."""
        try:
            changes = self.store.changes(self._revision, BATCH)
        except Compacted:
            self._reload()
            return
        with self._state:
            fresh = [change for change in changes if self._table.apply(change)]
            if changes:
                self._revision = changes[-1].revision
            self._undelivered.append(fresh)
            self._state.notify_all()

    def _reload(self) -> None:
        table, revision = _load(self.store)
        with self._state:
            gone = [
                Change(revision, entry.key, None)
                for entry in self._table.range("", None, None)
                if table.get(entry.key) is None
            ]
            fresh = [
                Change(entry.revision, entry.key, entry.value, entry.lease)
                for entry in table.range("", None, None)
                if entry != self._table.get(entry.key)
            ]
            self._table, self._revision = table, revision
            self._undelivered.append(sorted(gone + fresh, key=lambda change: (change.revision, change.key)))
            self._state.notify_all()

    def _deliver(self) -> None:
        """Tells the listeners; called again from within a listener it leaves the work to the outer call."""
        if self._delivering:
            return
        self._delivering = True
        try:
            while self._undelivered:
                changes = self._undelivered.popleft()
                with self._state:
                    listeners = list(self._listeners) if changes else []
                for listener in listeners:
                    try:
                        listener(changes)
                    except Exception:
                        log.exception("a listener of the store failed", listener=repr(listener))
        finally:
            self._delivering = False

    def _follow(self) -> None:
        wait = self._interval
        while not self._stop.wait(wait):
            try:
                self.sync()
                wait = self._interval
            except OrreryError as error:
                log.error("cannot follow the store", error=error.message)
                wait = RETRY_SECONDS
        self.store.close()


def _load(store: Store) -> tuple[Table, int]:
    """Everything at one revision: what was written while reading is taken from the change log."""
    while True:
        revision = store.revision()
        table = Table(store.range(""))
        try:
            while changes := store.changes(revision, BATCH):
                for change in changes:
                    table.apply(change)
                revision = changes[-1].revision
        except Compacted:
            continue
        return table, revision
