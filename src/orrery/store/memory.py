# SPDX-License-Identifier: AGPL-3.0-or-later
"""A store that forgets everything: for tests, and the plainest statement of what a store does."""

import threading
from collections.abc import Sequence
from uuid import uuid4

from orrery.store.base import Change, Condition, Delete, Entry, Put
from orrery.store.lease import Lease, LeaseClock, SystemClock
from orrery.store.table import Table, beyond_history, check_operations


class MemoryStore:
    """A `Store` for the threads of one process. `history` is how many revisions of the change log are kept."""

    def __init__(self, *, history: int = 10_000, clock: LeaseClock | None = None) -> None:
        self._lock = threading.RLock()
        self._epoch = uuid4().hex
        self._clock = clock or SystemClock()
        self._history = history
        self._table = Table()
        self._revision = 0
        self._compacted = 0
        self._changes: list[Change] = []
        self._leases: dict[int, Lease] = {}
        self._next_lease = 1

    def epoch(self) -> str:
        return self._epoch

    def revision(self) -> int:
        with self._lock:
            self._expire()
            return self._revision

    def get(self, key: str) -> Entry | None:
        with self._lock:
            self._expire()
            return self._table.get(key)

    def range(self, prefix: str, *, after: str | None = None, limit: int | None = None) -> list[Entry]:
        with self._lock:
            self._expire()
            return self._table.range(prefix, after, limit)

    def transact(self, conditions: Sequence[Condition], operations: Sequence[Put | Delete]) -> int | None:
        check_operations(operations)
        with self._lock:
            self._expire()
            for condition in conditions:
                entry = self._table.get(condition.key)
                if (entry.revision if entry else 0) != condition.revision:
                    return None
            for operation in operations:
                lease = operation.lease if isinstance(operation, Put) else None
                if lease is not None and lease not in self._leases:
                    raise ValueError(f"no lease {lease}")
            return self._carry_out(operations)

    def put(self, key: str, value: bytes) -> int:
        revision = self.transact((), [Put(key, value)])
        assert revision is not None  # noqa: S101 (no condition was given)
        return revision

    def delete(self, key: str) -> bool:
        with self._lock:
            present = self.get(key) is not None
            if present:
                self.transact((), [Delete(key)])
            return present

    def changes(self, since: int, limit: int = 1000) -> list[Change]:
        with self._lock:
            self._expire()
            if since < self._compacted or since > self._revision:
                raise beyond_history(since, self._compacted, self._revision)
            found: list[Change] = []
            for change in self._changes:
                if change.revision <= since:
                    continue
                if len(found) >= limit and change.revision != found[-1].revision:
                    break
                found.append(change)
            return found

    def grant(self, ttl: float) -> int:
        with self._lock:
            lease = self._next_lease
            self._next_lease += 1
            self._leases[lease] = Lease.begin(self._clock, ttl)
            return lease

    def renew(self, lease: int) -> bool:
        with self._lock:
            self._expire()
            if lease not in self._leases:
                return False
            self._leases[lease] = Lease.begin(self._clock, self._leases[lease].ttl)
            return True

    def revoke(self, lease: int) -> None:
        with self._lock:
            if self._leases.pop(lease, None) is not None:
                leased = [entry.key for entry in self._table.range("", None, None) if entry.lease == lease]
                self._carry_out([Delete(key) for key in leased])

    def close(self) -> None:
        """Nothing to let go of."""

    def _carry_out(self, operations: Sequence[Put | Delete]) -> int:
        revision = self._revision + 1
        for operation in sorted(operations, key=lambda operation: operation.key):
            if isinstance(operation, Put):
                change = Change(revision, operation.key, operation.value, operation.lease)
            else:
                change = Change(revision, operation.key, None)
            if self._table.apply(change):
                self._changes.append(change)
                self._revision = revision
        self._compact()
        return self._revision

    def _compact(self) -> None:
        if self._revision - self._compacted > self._history + self._history // 4:
            self._compacted = self._revision - self._history
            self._changes = [change for change in self._changes if change.revision > self._compacted]

    def _expire(self) -> None:
        for lease in [number for number, lease in self._leases.items() if lease.ended(self._clock)]:
            self.revoke(lease)
