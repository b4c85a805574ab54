# SPDX-License-Identifier: AGPL-3.0-or-later
"""Roles: named sets of privileges. The built-in ones come with the program and are never stored."""

from collections.abc import Iterable
from typing import Any

from orrery.access.records import ROLES, drop_acl, plain_name
from orrery.errors import AlreadyExists, Failure, NotFound, ParameterError
from orrery.model.access import BUILTIN_ROLES, PRIVILEGES
from orrery.store.base import Store
from orrery.store.documents import Transaction, atomically, read_document, read_documents

RESERVED = "pve"


class Roles:
    """Built-in roles and those that people made."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def list(self) -> list[dict[str, Any]]:
        """All roles; `special` marks the built-in ones."""
        made = {role: document["privs"] for role, document in read_documents(self._store, ROLES).items()}
        return [
            {"roleid": role, "privs": ",".join(sorted(privs)), "special": int(role in BUILTIN_ROLES)}
            for role, privs in sorted({**made, **BUILTIN_ROLES}.items())
        ]

    def read(self, role: str) -> dict[str, int]:
        """The privileges of a role, each as `{name: 1}`. Raises `NotFound`."""
        return dict.fromkeys(sorted(self.privileges(role)), 1)

    def privileges(self, role: str) -> frozenset[str]:
        """The privileges of a role. Raises `NotFound`."""
        if role in BUILTIN_ROLES:
            return frozenset(BUILTIN_ROLES[role])
        document = read_document(self._store, ROLES + plain_name(role, "roleid"))
        if document is None:
            raise NotFound(f"role '{role}' does not exist")
        return frozenset(document["privs"])

    def create(self, role: str, privs: Iterable[str] = ()) -> None:
        """Makes a role. Raises `AlreadyExists`, `ParameterError` for a reserved name, `Failure` for a privilege."""
        plain_name(role, "roleid")
        if role.lower().startswith(RESERVED):
            raise ParameterError({"roleid": "role IDs that begin with 'PVE' are reserved for built-in roles"})
        wanted = _known(privs)

        def create(transaction: Transaction) -> None:
            if role in BUILTIN_ROLES or transaction.read(ROLES + role) is not None:
                raise AlreadyExists(f"create role failed: role '{role}' already exists")
            transaction.write(ROLES + role, {"privs": sorted(wanted)})

        atomically(self._store, create)

    def update(self, role: str, privs: Iterable[str] | None = None, *, append: bool = False) -> None:
        """Replaces a role's privileges, or adds to them. Raises `NotFound`, `Failure`."""
        _refuse_builtin(role, "modified")
        wanted = None if privs is None else _known(privs)

        def update(transaction: Transaction) -> None:
            document = transaction.read(ROLES + plain_name(role, "roleid"))
            if document is None:
                raise NotFound(f"role '{role}' does not exist")
            if wanted is not None:
                kept = set(document["privs"]) if append else set()
                transaction.write(ROLES + role, {**document, "privs": sorted(kept | wanted)})

        atomically(self._store, update)

    def delete(self, role: str) -> None:
        """Removes a role and what was granted by it. Raises `NotFound`, `Failure` for a built-in one."""
        _refuse_builtin(role, "deleted")

        def delete(transaction: Transaction) -> None:
            if transaction.read(ROLES + plain_name(role, "roleid")) is None:
                raise NotFound(f"role '{role}' does not exist")
            transaction.remove(ROLES + role)
            drop_acl(transaction, lambda entry: entry["roleid"] == role)

        atomically(self._store, delete)


def _known(privs: Iterable[str]) -> set[str]:
    wanted = set(privs)
    unknown = wanted.difference(PRIVILEGES)
    if unknown:
        raise Failure(f"invalid privilege '{min(unknown)}'")
    return wanted


def _refuse_builtin(role: str, verb: str) -> None:
    if role in BUILTIN_ROLES:
        raise Failure(f"auto-generated role '{role}' cannot be {verb}")
