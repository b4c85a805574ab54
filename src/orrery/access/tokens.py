# SPDX-License-Identifier: AGPL-3.0-or-later
"""API tokens: a random value that is shown once, of which only the SHA-256 is kept.

The value has 122 random bits, so a plain fast hash is as good as a slow one here, and every request can afford it.
"""

import hashlib
import hmac
from collections.abc import Iterable
from typing import Any
from uuid import uuid4

from orrery.access.records import (
    TOKEN_SECRETS,
    TOKENS,
    USERS,
    drop_acl,
    require_token,
    require_user,
    user_id,
    without_empty,
)
from orrery.errors import NotFound, ParameterError
from orrery.model.identity import TokenId, UserId
from orrery.store.base import Store
from orrery.store.documents import Transaction, atomically, read_document, read_documents

REMOVABLE = ("comment", "expire")


class Tokens:
    """The API tokens of all users."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def list(self, userid: str) -> list[dict[str, Any]]:
        """A user's tokens. Raises `NotFound` for an unknown user."""
        user = user_id(userid)
        if self._store.get(USERS + str(user)) is None:
            raise NotFound(f"no such user ('{user}')")
        return [{"tokenid": name, **token} for name, token in read_documents(self._store, f"{TOKENS}{user}/").items()]

    def read(self, userid: str, name: str) -> dict[str, Any]:
        """One token: privsep, expire, comment. Raises `NotFound`."""
        return require_token(Transaction(self._store), _token(userid, name))

    def create(
        self, userid: str, name: str, *, comment: str | None = None, expire: int | None = None, privsep: bool = True
    ) -> dict[str, Any]:
        """Makes a token; `value` in the result is the only time that it is shown.

        `expire` in Unix seconds, 0 for never. Raises `NotFound` for the user, `ParameterError` for a name in use.
        """
        token = _token(userid, name)
        value = str(uuid4())
        info = without_empty({"privsep": int(privsep), "expire": expire or 0, "comment": comment})

        def create(transaction: Transaction) -> None:
            require_user(transaction, token.user)
            if transaction.read(_key(token)) is not None:
                raise ParameterError({"tokenid": "Token already exists."})
            # So that a deletion of the user at the same moment cannot overlook this token.
            transaction.touch(USERS + str(token.user))
            transaction.write(_key(token), info)
            transaction.write(_secret_key(token), {"sha256": _digest(value)})

        atomically(self._store, create)
        return {"full-tokenid": str(token), "info": info, "value": value}

    def update(
        self,
        userid: str,
        name: str,
        *,
        comment: str | None = None,
        expire: int | None = None,
        privsep: bool | None = None,
        delete: Iterable[str] = (),
    ) -> dict[str, Any]:
        """Changes what is given and returns the token as it is then. Raises `NotFound`, `ParameterError`."""
        token = _token(userid, name)
        removed = set(delete)
        if not removed.issubset(REMOVABLE):
            unknown = ", ".join(sorted(removed.difference(REMOVABLE)))
            raise ParameterError({"delete": f"'{unknown}' cannot be removed; only {', '.join(REMOVABLE)} can"})
        given = {"comment": comment, "expire": expire, "privsep": None if privsep is None else int(privsep)}
        given = {option: value for option, value in given.items() if value is not None}
        both = removed.intersection(given)
        if both:
            raise ParameterError({"delete": f"cannot set and remove '{min(both)}' at once"})

        def update(transaction: Transaction) -> dict[str, Any]:
            document = {**require_token(transaction, token), **given}
            document = {option: value for option, value in document.items() if option not in removed}
            document = without_empty({"expire": 0, **document})
            transaction.write(_key(token), document)
            return document

        return atomically(self._store, update)

    def delete(self, userid: str, name: str) -> None:
        """Removes a token with its permissions; it is refused from now on. Raises `NotFound`."""
        token = _token(userid, name)

        def delete(transaction: Transaction) -> None:
            require_token(transaction, token)
            transaction.remove(_key(token))
            transaction.remove(_secret_key(token))
            drop_acl(transaction, lambda entry: entry["type"] == "token" and entry["ugid"] == str(token))

        atomically(self._store, delete)

    def verify(self, token: TokenId, value: str, now: float) -> bool:
        """Whether this is the token's value and the token has not expired at `now`. Says nothing of its user."""
        secret = read_document(self._store, _secret_key(token))
        document = read_document(self._store, _key(token))
        known = "" if secret is None else secret["sha256"]
        same = hmac.compare_digest(known.encode(), _digest(value).encode())
        if not same or document is None:
            return False
        expire = document.get("expire", 0)
        return not expire or expire > now


def _token(userid: str, name: str) -> TokenId:
    user: UserId = user_id(userid)
    try:
        return TokenId(user, name)
    except ValueError as error:
        raise ParameterError({"tokenid": str(error)}) from error


def _key(token: TokenId) -> str:
    return f"{TOKENS}{token.user}/{token.token}"


def _secret_key(token: TokenId) -> str:
    return f"{TOKEN_SECRETS}{token.user}/{token.token}"


def _digest(value: str) -> str:
    return hashlib.sha256(value.encode(errors="replace")).hexdigest()
