# SPDX-License-Identifier: AGPL-3.0-or-later
"""Who somebody is: user ids, token ids, and the identity that a request acts as.

Grammar and limits are those of the compatible API: `name@realm`, at most 64 characters, the name without whitespace,
`:` or `/`; a token id is `name@realm!token`. The realm comes after the last `@`, so a name may contain `@` and `!`.
"""

import re
from dataclasses import dataclass
from typing import Self

USER_MAX = 64
NAME = re.compile(r"[^\s:/\x00-\x1f\x7f]+")
REALM = re.compile(r"[A-Za-z][A-Za-z0-9._-]+")
REALM_MAX = 32
TOKEN = REALM
TOKEN_MAX = 128


@dataclass(frozen=True, slots=True, order=True)
class UserId:
    """`name@realm`. Construct by `parse`, or directly with parts that obey the grammar (ValueError otherwise)."""

    name: str
    realm: str

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name) or not self.name.isprintable():
            raise ValueError(f"user name '{self.name}' is empty or contains whitespace, ':' or '/'")
        if not REALM.fullmatch(self.realm) or len(self.realm) > REALM_MAX:
            raise ValueError(f"realm '{self.realm}' is not 2 to {REALM_MAX} letters, digits or '._-', a letter first")
        if len(self.name) + 1 + len(self.realm) > USER_MAX:
            raise ValueError(f"user id is longer than {USER_MAX} characters")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `name@realm`; ValueError when it is none."""
        name, at, realm = text.rpartition("@")
        if not at:
            raise ValueError(f"value '{text}' does not look like a valid user name: it has no '@realm'")
        return cls(name, realm)

    def __str__(self) -> str:
        return f"{self.name}@{self.realm}"


ROOT = UserId("root", "pam")


@dataclass(frozen=True, slots=True, order=True)
class TokenId:
    """`name@realm!token`: an API token of a user."""

    user: UserId
    token: str

    def __post_init__(self) -> None:
        if not TOKEN.fullmatch(self.token) or len(self.token) > TOKEN_MAX:
            raise ValueError(f"token name '{self.token}' is not 2 to {TOKEN_MAX} letters, digits or '._-'")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `name@realm!token`; ValueError when it is none."""
        user, mark, token = text.rpartition("!")
        if not mark:
            raise ValueError(f"value '{text}' does not look like a token id: it has no '!token'")
        return cls(UserId.parse(user), token)

    def __str__(self) -> str:
        return f"{self.user}!{self.token}"


@dataclass(frozen=True, slots=True, order=True)
class Identity:
    """As whom a request acts: a user, or one of the user's tokens."""

    user: UserId
    token: str | None = None

    def __post_init__(self) -> None:
        if self.token is not None:
            TokenId(self.user, self.token)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `name@realm` or `name@realm!token`; ValueError when it is neither.

        A realm has no `!`, so the text is a token id exactly if a `!` follows its last `@`.
        """
        if "!" in text.rpartition("@")[2]:
            token = TokenId.parse(text)
            return cls(token.user, token.token)
        return cls(UserId.parse(text))

    @property
    def is_root(self) -> bool:
        """Whether this is root@pam itself, signed in without a token: the only one that passes every check.

        A token of root has what the rules give it: everything without privilege separation, else its own ACL; what is
        reserved to root stays closed to it either way.
        """
        return self.token is None and self.user == ROOT

    @property
    def is_token(self) -> bool:
        """Whether an API token acts, not the user in person."""
        return self.token is not None

    @property
    def token_id(self) -> TokenId | None:
        """The token's full id, None for a plain user."""
        return None if self.token is None else TokenId(self.user, self.token)

    def __str__(self) -> str:
        return str(self.user) if self.token is None else f"{self.user}!{self.token}"
