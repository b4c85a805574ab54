# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a store is: keys with revisions, compare-and-set transactions, ranges, a change log and leases.

The semantics are those of etcd, so that one node (SQLite) and a cluster (etcd itself) are the same to everything above.
Keys are the paths of things (`/guests/100`); values are bytes. A transaction is all or nothing, and gets one revision.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from orrery.errors import OrreryError


@dataclass(frozen=True, slots=True)
class Entry:
    """One key as stored: `revision` of its last change, `created` of its creation, `version` counts changes from 1."""

    key: str
    value: bytes
    revision: int
    created: int
    version: int
    lease: int | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """One line of the change log; `value` is None when the key was deleted."""

    revision: int
    key: str
    value: bytes | None
    lease: int | None = None


@dataclass(frozen=True, slots=True)
class Condition:
    """Holds when the key's last revision is `revision`; 0 means that the key does not exist."""

    key: str
    revision: int


@dataclass(frozen=True, slots=True)
class Put:
    """Sets a key; with a lease the key goes when the lease ends."""

    key: str
    value: bytes
    lease: int | None = None


@dataclass(frozen=True, slots=True)
class Delete:
    """Removes a key; a missing key is no error."""

    key: str


class Compacted(OrreryError):
    """The change log no longer reaches back to the revision asked for; read everything anew."""

    code = "compacted"


class Store(Protocol):
    """Safe for use by several threads and several processes at once.

    Keys begin with `/`, hold no control characters, and are at most 1,024 bytes long; a transaction names each key
    once. What breaks these rules is a `ValueError`: it is a fault of the program, not of its user.
    """

    def epoch(self) -> str:
        """The identity of this history of revisions; revisions of different epochs cannot be compared."""
        ...

    def revision(self) -> int:
        """The newest revision."""
        ...

    def get(self, key: str) -> Entry | None:
        """The entry, or None."""
        ...

    def range(self, prefix: str, *, after: str | None = None, limit: int | None = None) -> list[Entry]:
        """Entries whose key begins with `prefix`, in key order, after the key `after`."""
        ...

    def transact(self, conditions: Sequence[Condition], operations: Sequence[Put | Delete]) -> int | None:
        """Carries out all operations if every condition holds: the new revision, else None and nothing happened."""
        ...

    def put(self, key: str, value: bytes) -> int:
        """Sets one key without condition."""
        ...

    def delete(self, key: str) -> bool:
        """Removes one key; whether it was there."""
        ...

    def changes(self, since: int, limit: int = 1000) -> list[Change]:
        """Changes with a revision above `since`, oldest first, within a revision in key order, never splitting one.

        About `limit` lines. Raises `Compacted` when the log does not reach from `since` to now.
        """
        ...

    def grant(self, ttl: float) -> int:
        """A new lease that ends `ttl` seconds after its last renewal."""
        ...

    def renew(self, lease: int) -> bool:
        """Renews a lease; False when it has ended."""
        ...

    def revoke(self, lease: int) -> None:
        """Ends a lease and removes its keys."""
        ...

    def close(self) -> None:
        """Lets go of the calling thread's resources."""
        ...
