# SPDX-License-Identifier: AGPL-3.0-or-later
"""Where access state lies in the store, what names it accepts, and the questions that several services ask of it.

| key | document |
|---|---|
| /access/users/USER | enable, expire (Unix seconds, 0 never), comment, email, firstname, lastname, keys |
| /access/groups/GROUP | comment, users: list of user ids |
| /access/roles/ROLE | privs: sorted list; only roles that people made |
| /access/realms/REALM | type, comment, default |
| /access/tokens/USER/TOKEN | privsep, expire, comment; the hash of its value under /secrets/tokens/USER/TOKEN |
| /access/acl | list of path, type (user, group, token), ugid, roleid, propagate |
| /pools/POOL | comment, vms: list of ids, storage: list of ids |
"""

import re
from collections.abc import Callable
from typing import Any

from orrery.errors import NotFound, ParameterError
from orrery.model.identity import TokenId, UserId
from orrery.store.base import Store
from orrery.store.documents import Transaction, read_document

USERS = "/access/users/"
GROUPS = "/access/groups/"
ROLES = "/access/roles/"
REALMS = "/access/realms/"
TOKENS = "/access/tokens/"
TOKEN_SECRETS = "/secrets/tokens/"
ACL = "/access/acl"
POOLS = "/pools/"

NAME = re.compile(r"[A-Za-z0-9._-]+")
NAME_MAX = 128

AclEntry = dict[str, Any]


def user_id(text: str, parameter: str = "userid") -> UserId:
    """Reads a user id. Raises `ParameterError`."""
    try:
        return UserId.parse(text)
    except ValueError as error:
        raise ParameterError({parameter: str(error)}) from error


def token_id(text: str, parameter: str = "tokens") -> TokenId:
    """Reads a full token id. Raises `ParameterError`."""
    try:
        return TokenId.parse(text)
    except ValueError as error:
        raise ParameterError({parameter: str(error)}) from error


def plain_name(text: str, parameter: str) -> str:
    """The name of a group, a role or one level of a pool. Raises `ParameterError`."""
    if not NAME.fullmatch(text) or not text.strip(".") or len(text) > NAME_MAX:
        raise ParameterError(
            {parameter: f"invalid format - '{text[:80]}' may hold only letters, digits, '.', '_', '-'"}
        )
    return text


def require_user(transaction: Transaction, user: UserId) -> dict[str, Any]:
    """The user's document. Raises `NotFound`."""
    document = transaction.read(USERS + str(user))
    if document is None:
        raise NotFound(f"no such user ('{user}')")
    return dict(document)


def require_token(transaction: Transaction, token: TokenId) -> dict[str, Any]:
    """The token's document. Raises `NotFound`."""
    document = transaction.read(f"{TOKENS}{token.user}/{token.token}")
    if document is None:
        raise NotFound(f"no such token '{token.token}' for user '{token.user}'")
    return dict(document)


def require_realm(transaction: Transaction, realm: str) -> dict[str, Any]:
    """The realm's document. Raises `NotFound`."""
    document = transaction.read(REALMS + realm)
    if document is None:
        raise NotFound(f"domain '{realm}' does not exist")
    return dict(document)


def require_group(transaction: Transaction, group: str) -> dict[str, Any]:
    """The group's document. Raises `NotFound`."""
    document = transaction.read(GROUPS + plain_name(group, "groupid"))
    if document is None:
        raise NotFound(f"group '{group}' does not exist")
    return dict(document)


def require_pool(transaction: Transaction, pool: str) -> dict[str, Any]:
    """The pool's document. Raises `NotFound`."""
    document = transaction.read(POOLS + pool)
    if document is None:
        raise NotFound(f"pool '{pool}' does not exist")
    return dict(document)


def drop_acl(transaction: Transaction, goes: Callable[[AclEntry], bool]) -> None:
    """Removes the entries of the access control list for which `goes` says so."""
    entries = transaction.read(ACL) or []
    kept = [entry for entry in entries if not goes(entry)]
    if len(kept) != len(entries):
        transaction.write(ACL, kept)


def is_active(store: Store, user: UserId, now: float) -> bool:
    """Whether the user exists, is enabled and not expired, and the realm is there."""
    document = read_document(store, USERS + str(user))
    if document is None or store.get(REALMS + user.realm) is None:
        return False
    expire = document.get("expire", 0)
    return bool(document.get("enable", 1)) and (not expire or expire > now)


def without_empty(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings but for empty texts, which stand for removal."""
    return {name: value for name, value in settings.items() if value != "" and value is not None}
