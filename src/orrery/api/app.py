# SPDX-License-Identifier: AGPL-3.0-or-later
"""The API as an ASGI application: reads bodies within limits, keeps slow work off the event loop, delays refusals.

Handlers that are plain functions run in a bounded pool of threads. Those that may wait long, and logins, have pools of
their own, so that machines that do not answer, or a storm of logins (each a slow hash), leave the rest of the API as
quick as before.
"""

import asyncio
import collections
import time
from collections.abc import Awaitable, Callable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from typing import Any

import orjson
import structlog
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from orrery.access.login import REFUSAL_SECONDS
from orrery.access.rules import World
from orrery.api import reply
from orrery.api.dispatch import Dispatcher, Incoming, Trail
from orrery.api.endpoint import Endpoint, Registry
from orrery.api.openapi import describe
from orrery.api.reply import Reply
from orrery.api.request import BODY_LIMIT, check_body
from orrery.api.services import Services
from orrery.errors import NotSupported, OrreryError, Unauthenticated

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

THREADS = 32
WAITING_THREADS = 32
LOGIN_THREADS = 4
WAITING_REFUSALS = 32
"""So many refusals may be waiting for one address; further requests of it are refused unread meanwhile."""

log = structlog.get_logger()


class Api:
    """The ASGI application. `origin` tells the address of the client, or `local`, from the connection's scope."""

    def __init__(
        self,
        registry: Registry,
        services: Services,
        origin: Callable[[Scope, dict[str, str]], str],
        *,
        refusal_seconds: float = REFUSAL_SECONDS,
    ) -> None:
        self.dispatcher = Dispatcher(registry, services)
        self._origin = origin
        self._refusal_seconds = refusal_seconds
        self._waiting: collections.Counter[str] = collections.Counter()
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="api")
        self._waiters = ThreadPoolExecutor(WAITING_THREADS, thread_name_prefix="api-wait")
        self._logins = ThreadPoolExecutor(LOGIN_THREADS, thread_name_prefix="login")
        self._description = orjson.dumps(describe(registry))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        begun = time.monotonic()
        try:
            answered = await self._answer(request, headers)
        except ClientDisconnect:
            return
        if isinstance(answered, Response):
            await answered(scope, receive, send)
            return
        if answered.status == 401:
            await self._delay(self._origin(scope, headers), begun)
        await _send(answered, scope["method"], send)

    def close(self) -> None:
        """Lets running handlers end and takes no more."""
        for pool in (self._pool, self._waiters, self._logins):
            pool.shutdown(wait=False, cancel_futures=True)

    async def _answer(self, request: Request, headers: dict[str, str]) -> Reply | Response:
        verb, path = request.method, request.scope["path"]
        if verb == "GET" and path == "/openapi.json":
            return Reply(200, "OK", self._description)
        origin = self._origin(request.scope, headers)
        endpoint = self.dispatcher.endpoint(verb, path)
        incoming = Incoming(verb, path, request.scope["query_string"], headers, origin, b"", request)
        try:
            if self._waiting[origin] >= WAITING_REFUSALS:
                raise Unauthenticated("too many failed logins from this address")
            size = check_body(verb, headers)
            if endpoint is not None and endpoint.upload:
                return await self._stream(incoming)
            body = await _body(request, size)
        except OrreryError as error:
            return self.dispatcher.failed(incoming, Trail(), error)
        incoming = Incoming(verb, path, request.scope["query_string"], headers, origin, body, request)
        if endpoint is not None and endpoint.streams:
            return await self._stream(incoming)
        return await self._run(endpoint, incoming)

    async def _run(self, endpoint: Endpoint | None, incoming: Incoming) -> Reply:
        """Has a thread carry out the request; waits for it even when the client goes away."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads(endpoint, incoming.verb), self.dispatcher.answer, incoming)

    def _threads(self, endpoint: Endpoint | None, verb: str) -> ThreadPoolExecutor:
        if endpoint is None:
            return self._pool
        if isinstance(endpoint.permission, World) and verb == "POST":
            return self._logins
        return self._waiters if endpoint.waits else self._pool

    async def _stream(self, incoming: Incoming) -> Reply | Response:
        """Carries out a handler that reads or writes a stream, in the event loop."""
        trail = Trail()
        loop = asyncio.get_running_loop()
        try:
            admitted = await loop.run_in_executor(self._pool, self.dispatcher.admit, incoming, trail)
            result = await admitted.call.endpoint.handler(admitted.call, admitted.params)
            answered = result if isinstance(result, Response) else reply.succeed(result, trail.format)
        except ClientDisconnect:
            self.dispatcher.record(incoming, trail, "client went away", status=499)
            raise
        except Exception as error:  # noqa: BLE001 - the last place that can answer
            return self.dispatcher.failed(incoming, trail, error)
        self.dispatcher.record(incoming, trail)
        return answered

    async def _delay(self, origin: str, begun: float) -> None:
        if self._waiting[origin] >= WAITING_REFUSALS:
            return
        self._waiting[origin] += 1
        try:
            await asyncio.sleep(max(0.0, begun + self._refusal_seconds - time.monotonic()))
        finally:
            self._waiting[origin] -= 1
            if not self._waiting[origin]:
                del self._waiting[origin]


async def _body(request: Request, announced: int) -> bytes:
    if announced > BODY_LIMIT:
        raise NotSupported("for data too large")
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > BODY_LIMIT:
            raise NotSupported("for data too large")
    return bytes(body)


async def _send(answered: Reply, method: str, send: Send) -> None:
    date = formatdate(usegmt=True)
    headers = [
        ("server", reply.SERVER),
        ("cache-control", "max-age=0"),
        ("pragma", "no-cache"),
        ("expires", date),
        ("date", date),
        ("content-length", str(len(answered.body))),
        *answered.headers,
    ]
    if answered.content_type is not None:
        headers.append(("content-type", answered.content_type))
    if answered.status >= 400:
        headers.append(("connection", "close"))
    await send(
        {
            "type": "http.response.start",
            "status": answered.status,
            "headers": [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers],
            "reason": answered.reason,
        }
    )
    await send({"type": "http.response.body", "body": b"" if method == "HEAD" else answered.body, "more_body": False})
