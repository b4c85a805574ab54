# SPDX-License-Identifier: AGPL-3.0-or-later
"""Finds the credentials that a request carries. Whether they are worth anything is for `orrery.access` to say."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import unquote

TICKET_COOKIE = "PVEAuthCookie"
TOKEN_SCHEME = "PVEAPIToken"
PAGE_COOKIE = "__Host-OrreryAuth"
"""Cookie that scripts cannot read; set by a login with `cookie=1`, for pages."""

CLAIMED = " (claimed)"
"""What the audit log adds to a name that nobody has proved to be theirs."""

CSRF_HEADER = "csrfpreventiontoken"


class Kind(StrEnum):
    TICKET = "ticket"
    TOKEN = "token"


@dataclass(frozen=True)
class Credentials:
    """A ticket, or an API token as `user@realm!name=secret`."""

    kind: Kind
    text: str

    @property
    def claimed(self) -> str:
        """As whom they were sent, believed or not."""
        name = self.text.rpartition("=")[0] if self.kind is Kind.TOKEN else self.text[:200].split(":")[1:2]
        return f"{name if isinstance(name, str) else ''.join(name)}{CLAIMED}"


def find_credentials(headers: Mapping[str, str]) -> Credentials | None:
    """The request's credentials; a cookie wins over the header, the clients' own cookie over the page's."""
    cookies = _cookies(headers.get("cookie", ""))
    for name in (TICKET_COOKIE, PAGE_COOKIE):
        if value := cookies.get(name):
            return Credentials(Kind.TICKET, unquote(value))
    header = headers.get("authorization", "").strip()
    if value := _after(TICKET_COOKIE, header):
        return Credentials(Kind.TICKET, unquote(value))
    if value := _after(TOKEN_SCHEME, header):
        return Credentials(Kind.TOKEN, unquote(value))
    return None


def _after(scheme: str, header: str) -> str | None:
    """What follows a scheme word and `=` or blanks."""
    if not header.startswith(scheme):
        return None
    rest = header[len(scheme) :]
    return rest[1:].strip() if rest[:1] in ("=", " ", "\t") else None


def _cookies(header: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for part in header.split(";"):
        name, equals, value = part.strip().partition("=")
        if equals:
            found.setdefault(name, value.strip().strip('"'))
    return found
