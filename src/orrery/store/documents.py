# SPDX-License-Identifier: AGPL-3.0-or-later
"""JSON documents in a store, and changes to several of them at once that lose nobody's update."""

from collections.abc import Callable
from typing import Any, TypeVar

import orjson

from orrery.errors import Conflict, Corrupt
from orrery.store.base import Condition, Delete, Put, Store

Result = TypeVar("Result")

ATTEMPTS = 100


def decode_document(key: str, value: bytes) -> Any:
    """The document in a stored value. Raises `Corrupt`, naming the key."""
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError as error:
        raise Corrupt(f"the stored value of '{key}' is not JSON ({error}); put back a backup of the store") from error


def encode_document(document: Any) -> bytes:
    """The stored form of a document; keeps the order of keys."""
    return orjson.dumps(document)


def read_document(store: Store, key: str) -> Any | None:
    """The document under `key`, None when there is none."""
    entry = store.get(key)
    return None if entry is None else decode_document(key, entry.value)


def read_documents(store: Store, prefix: str) -> dict[str, Any]:
    """The documents whose key begins with `prefix`, by the rest of the key, in key order."""
    return {entry.key[len(prefix) :]: decode_document(entry.key, entry.value) for entry in store.range(prefix)}


class Transaction:
    """Reads and writes that take effect together, and only if nothing that was read has changed meanwhile.

    A range is not protected against keys that appear in it; whoever adds a key that another one must know of says so
    by `touch` on a key that both read.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._read: dict[str, int] = {}
        self._written: dict[str, Put | Delete] = {}

    def read(self, key: str) -> Any | None:
        """The document as this transaction has it; None when there is none."""
        pending = self._written.get(key)
        if pending is not None:
            return decode_document(key, pending.value) if isinstance(pending, Put) else None
        entry = self._store.get(key)
        self._read.setdefault(key, entry.revision if entry else 0)
        return None if entry is None else decode_document(key, entry.value)

    def read_range(self, prefix: str) -> dict[str, Any]:
        """As `read_documents`, with this transaction's own writes."""
        found: dict[str, Any] = {}
        for entry in self._store.range(prefix):
            self._read.setdefault(entry.key, entry.revision)
            found[entry.key[len(prefix) :]] = decode_document(entry.key, entry.value)
        for key, pending in self._written.items():
            if key.startswith(prefix):
                found.pop(key[len(prefix) :], None)
                if isinstance(pending, Put):
                    found[key[len(prefix) :]] = decode_document(key, pending.value)
        return dict(sorted(found.items()))

    def write(self, key: str, document: Any, *, lease: int | None = None) -> None:
        """Sets a document."""
        self._written[key] = Put(key, encode_document(document), lease)

    def remove(self, key: str) -> None:
        """Removes a document; a missing one is no error."""
        self._written[key] = Delete(key)

    def touch(self, key: str) -> None:
        """Gives an existing document a new revision, so that whoever read it has to read again."""
        document = self.read(key)
        if document is not None and key not in self._written:
            self.write(key, document)

    def commit(self) -> bool:
        """Carries out the writes; False when something that was read has changed."""
        if not self._written:
            return True
        conditions = [Condition(key, revision) for key, revision in self._read.items()]
        return self._store.transact(conditions, list(self._written.values())) is not None


def atomically(store: Store, change: Callable[[Transaction], Result], *, attempts: int = ATTEMPTS) -> Result:
    """Calls `change` with a transaction and commits it, again with fresh reads for as long as others are faster.

    What `change` raises ends it with nothing written. Raises `Conflict` after `attempts` lost races.
    """
    for _ in range(attempts):
        transaction = Transaction(store)
        result = change(transaction)
        if transaction.commit():
            return result
    raise Conflict


def update_document(store: Store, key: str, change: Callable[[Any | None], Any | None]) -> Any | None:
    """Replaces the document under `key` by what `change` makes of it; None stands for no document, before and after."""

    def apply(transaction: Transaction) -> Any | None:
        document = change(transaction.read(key))
        if document is None:
            transaction.remove(key)
        else:
            transaction.write(key, document)
        return document

    return atomically(store, apply)
