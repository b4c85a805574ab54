# SPDX-License-Identifier: AGPL-3.0-or-later
"""From credentials to an identity: passwords, tickets, API tokens.

Every refusal says the same, so nobody learns which users exist, are disabled or have run out of tries; the reason goes
to the daemon's log. Blocking (hashes, PAM): call from a worker thread. The API delays each refusal to
`REFUSAL_SECONDS`.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import structlog

from orrery.access.attempts import Attempts
from orrery.access.identity import LOCAL_ROOT, NOBODY
from orrery.access.permissions import Permissions
from orrery.access.realms.base import Realm
from orrery.access.records import is_active
from orrery.access.tickets import LOGIN_PREFIX, Tickets
from orrery.access.tokens import Tokens
from orrery.errors import Unauthenticated
from orrery.model.identity import ROOT, Identity, TokenId, UserId
from orrery.store.base import Store

REFUSAL_SECONDS = 3.0
CONSOLE_PREFIX = "PVEVNC"
CONSOLE_SECONDS = 40.0
BUILT_IN_REALM = "pve"

log = structlog.get_logger()


def remaining_delay(begun: float, now: float) -> float:
    """Seconds for which a refusal must still wait, for a request that began at `begun` on the same clock as `now`."""
    return max(0.0, REFUSAL_SECONDS - (now - begun))


@dataclass(frozen=True)
class Session:
    """What a login gives."""

    user: UserId
    ticket: str
    csrf: str


class Login:
    """Judges credentials. `clock` gives Unix seconds, for expiry."""

    def __init__(
        self,
        store: Store,
        realms: Mapping[str, Realm],
        tickets: Tickets,
        permissions: Permissions,
        *,
        attempts: Attempts | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._realms = realms
        self._tickets = tickets
        self._permissions = permissions
        self._tokens = Tokens(store)
        self._attempts = attempts or Attempts()
        self._clock = clock

    # --- requests

    def by_ticket(self, ticket: str) -> Identity:
        """Whose ticket it is. Raises `Unauthenticated`."""
        user = self._ticket_user(ticket)
        if user is None:
            raise Unauthenticated("Authentication failed!")
        return Identity(user)

    def by_token(self, text: str) -> Identity:
        """Whose API token it is: `user@realm!name=value`. Raises `Unauthenticated`."""
        name, _, value = text.rpartition("=")
        try:
            token = TokenId.parse(name)
        except ValueError:
            raise Unauthenticated("Authentication failed!") from None
        now = self._clock()
        if not self._tokens.verify(token, value, now) or not is_active(self._store, token.user, now):
            log.info("refused an API token", token=str(token))
            raise Unauthenticated("Authentication failed!")
        return Identity(token.user, token.token)

    def csrf_matches(self, identity: Identity, token: str) -> bool:
        """Whether a CSRF token belongs to the user of a ticket."""
        return self._tickets.verify_csrf(str(identity.user), token)

    def local_root(self) -> Identity:
        """Root on this host, who needs no login."""
        return LOCAL_ROOT

    def nobody(self) -> Identity:
        """Who calls a method that needs no login."""
        return NOBODY

    # --- logins

    def log_in(self, username: str, password: str, origin: str, *, realm: str | None = None) -> Session:
        """A session for a password, or for a ticket in its place that is still good. Raises `Unauthenticated`."""
        user = self.authenticate(username, password, origin, realm=realm)
        return self.session(user)

    def session(self, user: UserId) -> Session:
        """A fresh ticket and CSRF token for a user who was authenticated."""
        ticket = self._tickets.issue(LOGIN_PREFIX, str(user))
        return Session(user, ticket, self._tickets.csrf_token(str(user)))

    def authenticate(
        self, username: str, secret: str, origin: str, *, realm: str | None = None, tickets: bool = True
    ) -> UserId:
        """The user, if `secret` is the password, or (with `tickets`) a valid ticket of the user or of root@pam.

        Raises `Unauthenticated`, also when address or user have used up their tries.
        """
        try:
            user = UserId.parse(f"{username}@{realm}" if realm else username)
        except ValueError:
            self._attempts.failed(origin, username[:100])
            raise self._refusal(username, origin, "malformed user id") from None
        if tickets and secret.startswith(LOGIN_PREFIX + ":"):
            holder = self._ticket_user(secret)
            if holder is not None and holder in (user, ROOT) and is_active(self._store, user, self._clock()):
                return user
        with self._attempts.trying(origin, str(user)) as admitted:
            if not admitted:
                raise self._refusal(str(user), origin, "too many failed or simultaneous logins")
            if not self._password_matches(user, secret):
                self._attempts.failed(origin, str(user))
                raise self._refusal(str(user), origin, "wrong password, or no such active user")
        self._attempts.succeeded(origin, str(user))
        return user

    def verify(
        self, username: str, secret: str, path: str, privs: Sequence[str], origin: str, *, realm: str | None = None
    ) -> UserId:
        """For programs that ask whether somebody may do something: `secret` as for a login, or a console ticket.

        Raises `Unauthenticated`, `Forbidden` when the user lacks one of the privileges on the path.
        """
        user = self._console_user(username if realm is None else f"{username}@{realm}", secret, path)
        if user is None:
            user = self.authenticate(username, secret, origin, realm=realm)
        self._permissions.require(Identity(user), path, tuple(privs))
        return user

    # --- consoles

    def console_ticket(self, identity: Identity, path: str, port: int | None = None) -> str:
        """A ticket that lets the user's next connection, within 40 s, reach the console at the path (and port)."""
        return self._tickets.issue(CONSOLE_PREFIX, extra=_console_extra(str(identity), path, port))

    def check_console_ticket(
        self, authid: str, ticket: str, path: str, privs: Sequence[str], port: int | None = None
    ) -> None:
        """Raises `Unauthenticated` for a bad ticket, `Forbidden` when a privilege on the path is missing."""
        extra = _console_extra(authid, path, port)
        try:
            identity = Identity.parse(authid)
        except ValueError:
            raise Unauthenticated("Authentication failed!") from None
        good = self._tickets.verify(CONSOLE_PREFIX, ticket, extra, max_age=CONSOLE_SECONDS)
        if good is None or not is_active(self._store, identity.user, self._clock()):
            raise Unauthenticated("Authentication failed!")
        self._permissions.require(identity, path, tuple(privs))

    # --- within

    def _password_matches(self, user: UserId, password: str) -> bool:
        active = is_active(self._store, user, self._clock())
        # Who is unknown or disabled costs a hash all the same, but never reaches another system's realm.
        realm = self._realms.get(user.realm) if active else None
        matches = (realm or self._realms[BUILT_IN_REALM]).authenticate(user, password)
        return matches and active and realm is not None

    def _ticket_user(self, ticket: str) -> UserId | None:
        verified = self._tickets.verify(LOGIN_PREFIX, ticket)
        if verified is None:
            return None
        try:
            user = UserId.parse(verified.data)
        except ValueError:
            return None
        return user if is_active(self._store, user, self._clock()) else None

    def _console_user(self, username: str, secret: str, path: str) -> UserId | None:
        if not secret.startswith(CONSOLE_PREFIX + ":"):
            return None
        extra = _console_extra(username, path, None)
        if self._tickets.verify(CONSOLE_PREFIX, secret, extra, max_age=CONSOLE_SECONDS) is None:
            return None
        try:
            user = UserId.parse(username)
        except ValueError:
            return None
        return user if is_active(self._store, user, self._clock()) else None

    def _refusal(self, user: str, origin: str, reason: str) -> Unauthenticated:
        log.warning("refused a login", user=user[:100], origin=origin, reason=reason)
        return Unauthenticated("authentication failure")


def _console_extra(user: str, path: str, port: int | None) -> str:
    return f"{user}:{path}" if port is None else f"{user}:{path}:{port}"
