# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a realm is: the place that knows the passwords of its users."""

from typing import Protocol

from orrery.model.identity import UserId

PASSWORD_LIMIT = 4096
"""Longer passwords are refused unread, in bytes."""


class Realm(Protocol):
    """Blocking, safe for several threads; called from worker threads only."""

    def authenticate(self, user: UserId, password: str) -> bool:
        """Whether this is the user's password. Takes as long for a user who does not exist."""
        ...

    def set_password(self, user: UserId, password: str) -> None:
        """Sets the password. Raises `NotSupported` when the realm cannot, `Failure` when it refuses."""
        ...


def acceptable(password: str) -> bool:
    """Whether a password may be checked at all: not empty, not huge, real text, no NUL (it would end it early in C)."""
    try:
        return 0 < len(password.encode()) <= PASSWORD_LIMIT and "\0" not in password
    except UnicodeEncodeError:
        return False
