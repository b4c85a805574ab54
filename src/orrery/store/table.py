# SPDX-License-Identifier: AGPL-3.0-or-later
"""Entries in memory, in key order: what `MemoryStore` and `Mirror` are made of. Not locked; the owner does that."""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Sequence

from orrery.store.base import Change, Compacted, Delete, Entry, Put

KEY_LIMIT = 1024
LAST_CODE_POINT = 0x10FFFF
CONTROL_CHARACTERS = frozenset(map(chr, [*range(0x20), 0x7F]))


def check_key(key: str) -> None:
    """Raises `ValueError` for what cannot be a key (see `orrery.store.base.Store`)."""
    if not key.startswith("/") or CONTROL_CHARACTERS.intersection(key) or len(key.encode()) > KEY_LIMIT:
        raise ValueError(f"not a store key: {key[:100]!r}")


def check_operations(operations: Sequence[Put | Delete]) -> None:
    """Raises `ValueError` when a key is malformed or named twice."""
    seen = set()
    for operation in operations:
        check_key(operation.key)
        if operation.key in seen:
            raise ValueError(f"a transaction names the key {operation.key!r} twice")
        seen.add(operation.key)


def beyond_history(since: int, compacted: int, newest: int) -> Compacted:
    """The error of `Store.changes` for a revision that the log does not reach, in the past or in the future."""
    return Compacted(f"the change log holds revisions {compacted + 1} to {newest}; changes since {since} are unknown")


def prefix_end(prefix: str) -> str | None:
    """The smallest text above every text that begins with `prefix`; None when there is none."""
    while prefix:
        code = ord(prefix[-1])
        if code < LAST_CODE_POINT:
            # Surrogates are no characters and cannot be encoded, so the successor of U+D7FF is U+E000.
            return prefix[:-1] + chr(0xE000 if code == 0xD7FF else code + 1)
        prefix = prefix[:-1]
    return None


class Table:
    """A mapping from key to entry that also answers prefix ranges in order."""

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self._entries = {entry.key: entry for entry in entries}
        self._keys = sorted(self._entries)

    def __len__(self) -> int:
        return len(self._keys)

    def get(self, key: str) -> Entry | None:
        return self._entries.get(key)

    def put(self, entry: Entry) -> None:
        if entry.key not in self._entries:
            insort(self._keys, entry.key)
        self._entries[entry.key] = entry

    def remove(self, key: str) -> Entry | None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            del self._keys[bisect_left(self._keys, key)]
        return entry

    def range(self, prefix: str, after: str | None, limit: int | None) -> list[Entry]:
        """As `Store.range`."""
        end = prefix_end(prefix)
        first = bisect_left(self._keys, prefix)
        if after is not None:
            first = max(first, bisect_right(self._keys, after))
        last = len(self._keys) if end is None else bisect_left(self._keys, end)
        if limit is not None:
            last = min(last, first + max(limit, 0))
        entries = self._entries
        return [entries[key] for key in self._keys[first:last]]

    def apply(self, change: Change) -> bool:
        """Takes over a line of the change log; False when the table already knew it or something newer."""
        before = self._entries.get(change.key)
        if before is not None and before.revision >= change.revision:
            return False
        if change.value is None:
            return self.remove(change.key) is not None
        created, version = (before.created, before.version + 1) if before else (change.revision, 1)
        self.put(Entry(change.key, change.value, change.revision, created, version, change.lease))
        return True
