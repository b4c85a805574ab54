# SPDX-License-Identifier: AGPL-3.0-or-later
"""The access control list: which user, group or token has which role on which path."""

from collections.abc import Iterable, Mapping
from typing import Any

from orrery.access.permissions import Permissions
from orrery.access.records import ACL, AclEntry, require_group, require_token, require_user, token_id, user_id
from orrery.access.roles import Roles
from orrery.errors import ParameterError
from orrery.model.access import normalize_path
from orrery.model.identity import Identity
from orrery.store.base import Store
from orrery.store.documents import Transaction, atomically, read_document

MODIFY = "Permissions.Modify"


class AccessControl:
    """Reads and changes the list."""

    def __init__(self, store: Store, permissions: Permissions) -> None:
        self._store = store
        self._permissions = permissions
        self._roles = Roles(store)

    def list(self, caller: Identity) -> list[AclEntry]:
        """The entries on paths whose permissions the caller may see or change."""
        everything = self._permissions.allowed(caller, "/access", ("Sys.Audit", MODIFY), any=True)
        return [
            {**entry, "propagate": int(entry["propagate"])}
            for entry in read_document(self._store, ACL) or []
            if everything or self._permissions.may_modify(caller, entry["path"])
        ]

    def update(
        self,
        caller: Identity,
        path: str,
        roles: Iterable[str],
        *,
        users: Iterable[str] = (),
        groups: Iterable[str] = (),
        tokens: Iterable[str] = (),
        propagate: bool = True,
        delete: bool = False,
    ) -> None:
        """Grants each role to each of the subjects on the path, or takes it away.

        Whether the caller may change this path at all is for the endpoint's rule; here a caller who may only because
        the thing is theirs (VM.Allocate and the like) is kept from handing out more than they have.
        Raises `ParameterError`, `NotFound`.
        """
        place = _path(path)
        wanted = sorted(set(roles))
        self._check_grant(caller, place, wanted, propagate=propagate, delete=delete)
        named = {"user": sorted(set(users)), "group": sorted(set(groups)), "token": sorted(set(tokens))}
        if not any(named.values()):
            raise ParameterError(
                dict.fromkeys(("users", "groups", "tokens"), "one of 'users', 'groups' and 'tokens' must be given")
            )

        def update(transaction: Transaction) -> None:
            subjects = _subjects(transaction, named, must_exist=not delete)
            entries = list(transaction.read(ACL) or [])
            for kind, subject in subjects:
                for role in wanted:
                    entry = {"path": place, "type": kind, "ugid": subject, "roleid": role}
                    entries = [other for other in entries if not entry.items() <= other.items()]
                    if not delete:
                        entries.append({**entry, "propagate": int(propagate)})
            transaction.write(ACL, sorted(entries, key=_order))

        atomically(self._store, update)

    def _check_grant(self, caller: Identity, path: str, roles: Iterable[str], *, propagate: bool, delete: bool) -> None:
        held = self._permissions.privileges(caller, path)
        for role in roles:
            needed = self._roles.privileges(role)
            if MODIFY in held:
                continue
            verb = "take away" if delete else "grant"
            if not needed:
                raise ParameterError({"roles": f"to {verb} the role '{role}' takes {MODIFY} on '{path}'"})
            for privilege in sorted(needed):
                if privilege not in held:
                    text = f"to {verb} the role '{role}' takes {MODIFY} or {privilege} on '{path}'"
                    raise ParameterError({"roles": text})
                if propagate and not delete and not held[privilege]:
                    text = f"to grant the role '{role}' with propagation takes {privilege} with propagation on '{path}'"
                    raise ParameterError({"roles": text})


def _path(path: str) -> str:
    try:
        return normalize_path(path)
    except ValueError as error:
        raise ParameterError({"path": str(error)}) from error


def _subjects(
    transaction: Transaction, named: Mapping[str, Iterable[str]], *, must_exist: bool
) -> list[tuple[str, str]]:
    """Kind and id of everybody who is named. Who is gone can still be taken out of the list."""
    found: list[tuple[str, str]] = []
    for name in named["user"]:
        user = user_id(name, "users")
        if must_exist:
            require_user(transaction, user)
        found.append(("user", str(user)))
    for name in named["group"]:
        if must_exist:
            require_group(transaction, name)
        found.append(("group", name))
    for name in named["token"]:
        token = token_id(name)
        if must_exist:
            require_token(transaction, token)
        found.append(("token", str(token)))
    return found


def _order(entry: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(str(entry[name]) for name in ("path", "type", "ugid", "roleid"))
