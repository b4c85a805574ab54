# SPDX-License-Identifier: AGPL-3.0-or-later
"""Users: what is known of them beside their passwords, and in which groups they are."""

from collections.abc import Iterable, Mapping
from typing import Any

from orrery.access.permissions import Permissions
from orrery.access.realms.base import Realm
from orrery.access.realms.local import LocalRealm, shadow_key
from orrery.access.records import (
    GROUPS,
    REALMS,
    TOKEN_SECRETS,
    TOKENS,
    USERS,
    drop_acl,
    plain_name,
    require_realm,
    require_user,
    user_id,
    without_empty,
)
from orrery.errors import AlreadyExists, Failure, NotFound, ParameterError
from orrery.model.identity import ROOT, Identity, UserId
from orrery.store.base import Store
from orrery.store.documents import Transaction, atomically, read_document, read_documents

SETTINGS = ("enable", "expire", "comment", "email", "firstname", "lastname", "keys")
SEE_USERS = ("User.Modify", "Sys.Audit")


class Users:
    """Users of all realms. Ids are `name@realm`."""

    def __init__(self, store: Store, permissions: Permissions, realms: Mapping[str, Realm]) -> None:
        self._store = store
        self._permissions = permissions
        self._realms = realms

    def list(self, caller: Identity, *, full: bool = False, enabled: bool | None = None) -> list[dict[str, Any]]:
        """Users whom the caller may see: all, or those in groups that the caller may see, and always the caller."""
        groups = read_documents(self._store, GROUPS)
        seen = self._visible(caller, groups)
        memberships = _memberships(groups)
        realms = read_documents(self._store, REALMS)
        tokens = read_documents(self._store, TOKENS) if full else {}
        listed = []
        for name, document in read_documents(self._store, USERS).items():
            if (seen is not None and name not in seen) or (enabled is not None and enabled != bool(document["enable"])):
                continue
            user = {"userid": name, **_shown(document)}
            user["realm-type"] = realms.get(user_id(name).realm, {}).get("type", "unknown")
            if full:
                user["groups"] = ",".join(memberships.get(name, []))
                user["tokens"] = [
                    {"tokenid": key.partition("/")[2], **token}
                    for key, token in tokens.items()
                    if key.partition("/")[0] == name
                ]
            listed.append(user)
        return listed

    def read(self, userid: str) -> dict[str, Any]:
        """One user with groups and tokens. Raises `NotFound`."""
        user = user_id(userid)
        document = read_document(self._store, USERS + str(user))
        if document is None:
            raise NotFound(f"no such user ('{user}')")
        memberships = _memberships(read_documents(self._store, GROUPS))
        return {
            **_shown(document),
            "groups": memberships.get(str(user), []),
            "tokens": read_documents(self._store, f"{TOKENS}{user}/"),
        }

    def create(
        self, userid: str, settings: Mapping[str, Any], *, groups: Iterable[str] = (), password: str | None = None
    ) -> None:
        """Makes a user, in groups that exist, with a password if the realm keeps passwords.

        Raises `AlreadyExists`, `NotFound` for the realm or a group, `ParameterError`.
        """
        user = user_id(userid)
        wanted = sorted(set(groups))
        shadow = None if password is None else self._hashed(user, password)

        def create(transaction: Transaction) -> None:
            if transaction.read(USERS + str(user)) is not None:
                raise AlreadyExists(f"create user failed: user '{user}' already exists")
            require_realm(transaction, user.realm)
            given = {name: settings[name] for name in SETTINGS if name in settings}
            document = without_empty({"enable": 1, "expire": 0, **given})
            transaction.write(USERS + str(user), {**document, "enable": int(document["enable"])})
            _join(transaction, user, wanted)
            if shadow is None:
                # A password that was set while an earlier user of this name was deleted must not come back.
                transaction.remove(shadow_key(user))
            else:
                transaction.write(shadow_key(user), shadow)

        atomically(self._store, create)

    def update(
        self, userid: str, settings: Mapping[str, Any], *, groups: Iterable[str] | None = None, append: bool = False
    ) -> None:
        """Changes what is given; an empty text removes. `groups` replaces the user's groups, or adds to them."""
        user = user_id(userid)
        wanted = None if groups is None else sorted(set(groups))

        def update(transaction: Transaction) -> None:
            document = require_user(transaction, user)
            given = {name: settings[name] for name in SETTINGS if name in settings}
            document = without_empty({**document, **given})
            transaction.write(USERS + str(user), {**document, "enable": int(document["enable"])})
            if wanted is not None:
                if not append:
                    _leave(transaction, user, set(wanted))
                _join(transaction, user, wanted)

        atomically(self._store, update)

    def delete(self, userid: str) -> None:
        """Removes a user with everything that belongs to the user: tokens, memberships, permissions, password."""
        user = user_id(userid)
        if user == ROOT:
            raise Failure(f"delete user failed: '{user}' cannot be removed")

        def delete(transaction: Transaction) -> None:
            require_user(transaction, user)
            transaction.remove(USERS + str(user))
            _leave(transaction, user, set())
            for token in transaction.read_range(f"{TOKENS}{user}/"):
                transaction.remove(f"{TOKENS}{user}/{token}")
            for token in transaction.read_range(f"{TOKEN_SECRETS}{user}/"):
                transaction.remove(f"{TOKEN_SECRETS}{user}/{token}")
            transaction.remove(shadow_key(user))
            drop_acl(transaction, lambda entry: _belongs(entry, user))

        atomically(self._store, delete)

    def _hashed(self, user: UserId, password: str) -> dict[str, str]:
        realm = self._realms.get(user.realm)
        if not isinstance(realm, LocalRealm):
            raise ParameterError({"password": f"the realm '{user.realm}' keeps its passwords elsewhere; set it there"})
        return realm.hashed(password)

    def _visible(self, caller: Identity, groups: Mapping[str, Any]) -> set[str] | None:
        """User ids that the caller may see; None for all."""
        if self._permissions.allowed(caller, "/access/groups", SEE_USERS, any=True):
            return None
        seen = {str(caller.user)}
        for group, document in groups.items():
            if self._permissions.allowed(caller, f"/access/groups/{group}", SEE_USERS, any=True):
                seen.update(document["users"])
        return seen


def _shown(document: Mapping[str, Any]) -> dict[str, Any]:
    return {name: document[name] for name in SETTINGS if name in document}


def _memberships(groups: Mapping[str, Any]) -> dict[str, list[str]]:
    """The groups of each user, sorted."""
    found: dict[str, list[str]] = {}
    for group, document in groups.items():
        for user in document["users"]:
            found.setdefault(user, []).append(group)
    return found


def _join(transaction: Transaction, user: UserId, groups: Iterable[str]) -> None:
    for group in groups:
        document = transaction.read(GROUPS + plain_name(group, "groups"))
        if document is None:
            raise NotFound(f"no such group '{group}'")
        if str(user) not in document["users"]:
            transaction.write(GROUPS + group, {**document, "users": sorted([*document["users"], str(user)])})


def _leave(transaction: Transaction, user: UserId, stays: set[str]) -> None:
    """Takes the user out of all groups but `stays`."""
    for group, document in transaction.read_range(GROUPS).items():
        if group not in stays and str(user) in document["users"]:
            left = [member for member in document["users"] if member != str(user)]
            transaction.write(GROUPS + group, {**document, "users": left})


def _belongs(entry: Mapping[str, Any], user: UserId) -> bool:
    """Whether an entry of the access control list is for the user or one of the user's tokens."""
    if entry["type"] == "token":
        return str(entry["ugid"]).rpartition("!")[0] == str(user)
    return bool(entry["type"] == "user" and entry["ugid"] == str(user))
