# SPDX-License-Identifier: AGPL-3.0-or-later
"""From a request to its answer: who is it, may they, is it well formed, do it, write it down.

The order is part of the wire: credentials come before everything (a stranger learns nothing of the tree), an unknown
method before its permission, the permission before the parameters.
"""

import contextlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import structlog

from orrery.access.identity import NOBODY, Identity
from orrery.access.rules import World
from orrery.api import reply
from orrery.api.call import Call
from orrery.api.credentials import CLAIMED, CSRF_HEADER, Kind, find_credentials
from orrery.api.endpoint import Endpoint, Registry
from orrery.api.manners import Array, Text, plain
from orrery.api.parameters import Params
from orrery.api.reply import Reply
from orrery.api.request import body_parameters, form, merge, target
from orrery.api.services import Services
from orrery.errors import Failure, Forbidden, NotSupported, OrreryError, Unauthenticated

log = structlog.get_logger()

LOCAL = "local"
"""Origin of requests from root on this host, who needs no credentials."""

SHOWN_TEXTS = frozenset(("username", "path", "filename", "upid", "url"))
"""Parameters that are free text, yet tell what a request is about; of other free texts the audit log has the length."""


@dataclass(frozen=True)
class Incoming:
    """A request with its body read (except for uploads)."""

    verb: str
    path: str
    """Decoded."""
    query: bytes
    headers: Mapping[str, str]
    """By lower-case name."""
    origin: str
    body: bytes = b""
    request: Any = None


@dataclass(frozen=True)
class Admitted:
    """A request that may be carried out."""

    call: Call
    params: Params


@dataclass
class Trail:
    """What is known so far, for the audit line and the shape of the answer."""

    format: str = "json"
    who: str = "-"
    endpoint: Endpoint | None = None
    params: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    known: bool = False
    """Whether the credentials were good, or none are needed."""


class Dispatcher:
    """Carries out requests; safe for many threads at once."""

    def __init__(self, registry: Registry, services: Services) -> None:
        self.registry = registry
        self.services = services

    def endpoint(self, verb: str, path: str) -> Endpoint | None:
        """Where a request leads, before anything is judged; None for what does not exist."""
        try:
            goal = target(verb, path)
        except OrreryError:
            return None
        match = self.registry.match(goal.segments)
        return match.branch.methods.get(verb) if match else None

    def answer(self, incoming: Incoming) -> Reply:
        """The whole way of a request whose handler is a plain function."""
        trail = Trail()
        try:
            admitted = self.admit(incoming, trail)
            result = admitted.call.endpoint.handler(admitted.call, admitted.params)
            answered = reply.succeed(result, trail.format)
        except Exception as error:  # noqa: BLE001 - the last place that can answer
            return self.failed(incoming, trail, error)
        self.record(incoming, trail)
        return answered

    def failed(self, incoming: Incoming, trail: Trail, error: Exception) -> Reply:
        """The answer to an error, with its audit line; a fault of ours is logged under a reference."""
        if not isinstance(error, OrreryError):
            reference = secrets.token_hex(4)
            log.error("request failed", reference=reference, verb=incoming.verb, path=incoming.path, exc_info=error)
            self.record(incoming, trail, f"internal error {reference}", status=500)
            return reply.unexpected(reference, trail.format)
        self.record(incoming, trail, error.message, status=error.status)
        if isinstance(error, Unauthenticated) and not trail.known:
            return reply.refuse(error.status, error.message)
        return reply.fail(error, trail.format)

    def admit(self, incoming: Incoming, trail: Trail) -> Admitted:
        """Everything that comes before the handler. Raises what the client is to be told."""
        goal = target(incoming.verb, incoming.path)
        trail.format = goal.format
        self._catch_up()
        match = self.registry.match(goal.segments)
        method = match.method(goal.verb) if match else None
        identity = self._identify(incoming, method[0] if method else None, trail)
        trail.who, trail.known = str(identity), True
        if method is None:
            raise NotSupported(f"Method '{goal.verb} {goal.path}' not implemented")
        endpoint, in_path = method
        if identity.token is not None and not endpoint.tokens:
            raise Forbidden(
                f"Permission check failed (URI '{goal.path}' not available with API token, need proper ticket.)"
            )
        raw = self._parameters(incoming, endpoint, in_path)
        trail.endpoint, trail.params = endpoint, raw
        if identity == NOBODY:
            trail.who = plain(raw.get("username", "-")) + CLAIMED
        node = raw.get(endpoint.proxy or "node")
        if node == "localhost":
            node = raw[endpoint.proxy or "node"] = self.services.node
        self.services.permissions.check(endpoint.permission, identity, raw)
        if endpoint.proxy is not None and node != self.services.node:
            raise Failure(f"hostname lookup '{node}' failed - no node of this cluster has that name")
        call = Call(endpoint, identity, incoming.origin, self.services, incoming.request, trail.notes)
        return Admitted(call, endpoint.params.from_wire(raw))

    def record(self, incoming: Incoming, trail: Trail, result: str = "OK", *, status: int = 200) -> None:
        """Writes the audit line that changes and refused attempts leave."""
        if incoming.verb == "GET" and status not in (401, 403):
            return
        path = incoming.path.removeprefix("/api2/json").removeprefix("/api2/extjs")
        self.services.audit.record(
            who=trail.who.removesuffix(CLAIMED) if status == 200 else trail.who,
            origin=incoming.origin,
            action=f"{incoming.verb} {path}",
            parameters=_told(trail),
            result="; ".join([result, *trail.notes]),
            status=status,
        )

    def _catch_up(self) -> None:
        """Whoever saw the end of a task must find what the task wrote, also within the mirror's polling interval."""
        with contextlib.suppress(OrreryError):  # its own thread tells; reads go on from what memory holds
            self.services.store.sync()

    def _identify(self, incoming: Incoming, endpoint: Endpoint | None, trail: Trail) -> Identity:
        login = self.services.login
        if incoming.origin == LOCAL:
            return login.local_root()
        if endpoint is not None and isinstance(endpoint.permission, World):
            return login.nobody()
        credentials = find_credentials(incoming.headers)
        if credentials is None:
            raise Unauthenticated("No ticket")
        trail.who = credentials.claimed
        if credentials.kind is Kind.TOKEN:
            return login.by_token(credentials.text)
        identity = login.by_ticket(credentials.text)
        exempt = incoming.verb == "GET" or (endpoint is not None and endpoint.upload)
        if not exempt and not login.csrf_matches(identity, incoming.headers.get(CSRF_HEADER, "")):
            raise Unauthenticated("Permission denied - invalid csrf token")
        return identity

    @staticmethod
    def _parameters(incoming: Incoming, endpoint: Endpoint, in_path: Mapping[str, str]) -> dict[str, Any]:
        body = {} if endpoint.upload else body_parameters(incoming.headers.get("content-type", ""), incoming.body)
        return merge(in_path, form(incoming.query), body)


def _told(trail: Trail) -> dict[str, Any]:
    """The parameters as the audit log may have them: of free texts (notes, files, commands) only the length."""
    declared = trail.endpoint.params.declared() if trail.endpoint else {}
    told: dict[str, Any] = {}
    for name, value in trail.params.items():
        manner = declared[name].manner if name in declared else None
        free = isinstance(manner, Array) or (isinstance(manner, Text) and not manner.format and not manner.pattern)
        known = not free or name in SHOWN_TEXTS
        shown = _without_secrets(plain(value)) if name == "url" else value
        told[name] = shown if known else f"({len(plain(value))} characters)"
    return told


def _without_secrets(url: str) -> str:
    """An address without what may be a password: credentials before the host, a signature in the query."""
    address, mark, _ = url.partition("?")
    scheme, slashes, rest = address.partition("://")
    if not slashes:
        return f"({len(url)} characters)"
    host, slash, path = rest.partition("/")
    return f"{scheme}{slashes}{host.rpartition('@')[2]}{slash}{path}{'?…' if mark else ''}"
