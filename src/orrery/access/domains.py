# SPDX-License-Identifier: AGPL-3.0-or-later
"""The settings of realms. The realms `pam` and `pve` are built in; other types are not supported yet."""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from orrery.access.records import REALMS, require_realm
from orrery.errors import AlreadyExists, Conflict, Failure, NotFound, NotSupported, ParameterError
from orrery.store.base import Store
from orrery.store.documents import Transaction, atomically, encode_document, read_document, read_documents

BUILT_IN = ("pam", "pve")
SETTINGS = ("comment", "default")
TYPES = ("ad", "ldap", "openid", "pam", "pve")


class Domains:
    """Realms as they are configured; `realm` is the realm's name."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def list(self) -> list[dict[str, Any]]:
        """What a login page needs to know, for anybody."""
        return [{"realm": realm, **document} for realm, document in read_documents(self._store, REALMS).items()]

    def read(self, realm: str) -> dict[str, Any]:
        """One realm with its digest. Raises `NotFound`."""
        document = read_document(self._store, REALMS + realm)
        if document is None:
            raise NotFound(f"domain '{realm}' does not exist")
        return {**document, "digest": _digest(self._store)}

    def create(self, realm: str, kind: str) -> None:
        """Refuses: there is one realm of each built-in type, and no other type yet."""
        if self._store.get(REALMS + realm) is not None:
            raise AlreadyExists(f"domain '{realm}' already exists")
        if kind in BUILT_IN:
            raise ParameterError({"type": f"there is one realm of type '{kind}', and it is built in"})
        raise NotSupported(f"realms of type '{kind}' are not supported yet")

    def update(
        self, realm: str, settings: Mapping[str, Any], *, delete: Iterable[str] = (), digest: str | None = None
    ) -> None:
        """Sets or removes `comment` and `default`; only one realm is the default.

        Raises `NotFound`, `Conflict` for another digest, `NotSupported` or `ParameterError` for other settings.
        """
        removed = set(delete)

        def update(transaction: Transaction) -> None:
            document = require_realm(transaction, realm)
            if digest is not None and digest != _digest(self._store):
                raise Conflict
            _check_settings(document["type"], settings, removed)
            document = {name: value for name, value in document.items() if name not in removed}
            if "comment" in settings:
                document["comment"] = settings["comment"]
            if "default" in settings:
                document.pop("default", None)
                if settings["default"]:
                    _clear_default(transaction)
                    document["default"] = 1
            transaction.write(REALMS + realm, document)

        atomically(self._store, update)

    def delete(self, realm: str) -> None:
        """Refuses for built-in realms, which are all there are. Raises `NotFound`, `Failure`."""
        require_realm(Transaction(self._store), realm)
        raise Failure(f"the built-in domain '{realm}' cannot be removed")

    def sync(self, realm: str) -> None:
        """Refuses: only directories could be synchronized. Raises `NotFound`, `ParameterError`, `NotSupported`."""
        document = require_realm(Transaction(self._store), realm)
        if document["type"] in BUILT_IN:
            raise ParameterError({"realm": f"a domain of type '{document['type']}' has nothing to synchronize with"})
        raise NotSupported(f"synchronizing domains of type '{document['type']}' is not supported yet")


def _check_settings(kind: str, settings: Mapping[str, Any], removed: set[str]) -> None:
    if settings.get("tfa") or "tfa" in removed:
        raise NotSupported("second factors (parameter 'tfa') are not supported yet")
    foreign = sorted((set(settings) | removed).difference(SETTINGS))
    if foreign:
        raise ParameterError(dict.fromkeys(foreign, f"a realm of type '{kind}' has no such setting"))
    both = removed.intersection(settings)
    if both:
        raise ParameterError(dict.fromkeys(sorted(both), "cannot be set and removed at once"))


def _clear_default(transaction: Transaction) -> None:
    for name, document in transaction.read_range(REALMS).items():
        if document.get("default"):
            transaction.write(REALMS + name, {key: value for key, value in document.items() if key != "default"})


def _digest(store: Store) -> str:
    """Changes with every change of any realm; the wire's form of it is that of SHA-1."""
    return hashlib.sha1(encode_document(read_documents(store, REALMS)), usedforsecurity=False).hexdigest()
