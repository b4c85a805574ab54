# SPDX-License-Identifier: AGPL-3.0-or-later
"""Signed statements of who somebody is: login tickets, CSRF tokens, and tickets of other kinds for short purposes.

A ticket is `PREFIX[:DATA]:TIME::SIGNATURE`: TIME in eight upper-case hex digits (Unix seconds), the signature in base64
over what stands before it, and over an extra text that the ticket does not show, so that it is good for that alone.
DATA is percent-encoded but for letters, digits and `@!-._~`; since cookies are decoded on their way, a ticket is also
good with DATA decoded. A CSRF token is `TIME:HMAC`, with HMAC-SHA256 over `TIME:user`.
"""

import base64
import binascii
import hashlib
import hmac
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote

from orrery.access.signing import CLOCK_GRACE, KeyPair, KeyRing

LOGIN_PREFIX = "PVE"
LOGIN_SECONDS = 2 * 3600
LENGTH_LIMIT = 4096

_TICKET = re.compile(r"([A-Za-z]+)(?::(.+))?:([0-9A-F]{8})::([A-Za-z0-9+/]+={0,2})")
_CSRF = re.compile(r"([0-9A-F]{8}):([A-Za-z0-9+/]+)={0,2}")


@dataclass(frozen=True, slots=True)
class Verified:
    """What a good ticket says: its data, and how many seconds old it is (below zero within the clock's grace)."""

    data: str
    age: float


class Tickets:
    """Issues and verifies with the node's keys in `folder`. `clock` gives Unix seconds."""

    def __init__(self, folder: Path, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._ring = KeyRing(folder, clock)

    def issue(self, prefix: str, data: str | None = None, extra: str = "") -> str:
        """A ticket of the kind `prefix` for `data`; `extra` must be given again to verify it."""
        if not prefix.isalpha() or not prefix.isascii():
            raise ValueError(f"not a ticket prefix: {prefix!r}")
        if data == "":
            raise ValueError("a ticket's data cannot be empty")
        key = self._ring.signing_key()
        plain = _plain(prefix, data, int(self._clock()))
        return f"{plain}::{base64.b64encode(key.sign(_signed(plain, extra))).decode()}"

    def verify(self, prefix: str, ticket: str, extra: str = "", *, max_age: float = LOGIN_SECONDS) -> Verified | None:
        """What the ticket says; None when it is malformed, forged, too old, from the future or for something else."""
        match = _TICKET.fullmatch(ticket) if len(ticket) <= LENGTH_LIMIT else None
        if match is None or match[1] != prefix:
            return None
        issued = int(match[3], 16)
        age = self._clock() - issued
        if not -CLOCK_GRACE <= age < max_age:
            return None
        signature = _decode(match[4])
        if signature is None:
            return None
        keys = self._valid_keys(issued)
        for data in dict.fromkeys([match[2] and unquote(match[2]), match[2]]):
            text = _signed(_plain(prefix, data, issued), extra)
            if any(key.verifies(text, signature) for key in keys):
                return Verified(data or "", age)
        return None

    def csrf_token(self, user: str) -> str:
        """A token that proves that a request with the user's cookie came from a page that could read it."""
        stamp = f"{int(self._clock()):08X}"
        return f"{stamp}:{self._csrf_mac(stamp, user)}"

    def verify_csrf(self, user: str, token: str) -> bool:
        """Whether the token is the user's, and as young as a ticket must be."""
        match = _CSRF.fullmatch(token) if len(token) <= LENGTH_LIMIT else None
        if match is None:
            return False
        fresh = -CLOCK_GRACE <= self._clock() - int(match[1], 16) < LOGIN_SECONDS
        return hmac.compare_digest(match[2], self._csrf_mac(match[1], user)) and fresh

    def _csrf_mac(self, stamp: str, user: str) -> str:
        mac = hmac.new(self._ring.keys().csrf, f"{stamp}:{user}".encode(), hashlib.sha256)
        return base64.b64encode(mac.digest()).decode().rstrip("=")

    def _valid_keys(self, issued: int) -> list[KeyPair]:
        """The key in use, and the one before for what it can have signed before it was retired."""
        keys = self._ring.keys()
        found = [keys.current]
        if keys.previous is not None and keys.previous.retired is not None and issued <= keys.previous.retired:
            found.append(keys.previous)
        return found


def _plain(prefix: str, data: str | None, issued: int) -> str:
    shown = "" if data is None else ":" + quote(data, safe="@!")
    return f"{prefix}{shown}:{issued:08X}"


def _signed(plain: str, extra: str) -> bytes:
    # The plain part never holds "::", so no other pair of plain part and extra text makes the same bytes.
    return f"{plain}::{extra}".encode() if extra else plain.encode()


def _decode(text: str) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
