# SPDX-License-Identifier: AGPL-3.0-or-later
"""The core's HTTP servers: uvicorn on unix sockets, with the reason phrases that clients read.

Two sockets: one for the front, which tells the client's address, and one for root on this host, which needs no login.
Who may connect is said by the sockets' folders and modes, and asked again of the kernel for every connection.
"""

import asyncio
import contextlib
import errno
import math
import os
import re
import socket
import time
from collections.abc import Awaitable, Callable, Generator, MutableMapping
from dataclasses import dataclass
from typing import Any, Final, cast

import structlog
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from orrery.system.sockets import peer

Message = MutableMapping[str, Any]
App = Callable[[Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]]

LOCAL: Final = "local"
ORIGIN: Final = "orrery.origin"
"""Key of the scope: `front` or `local`, by the socket that the request came through."""

GRACE_SECONDS: Final = 3
KEEP_ALIVE_SECONDS: Final = 120
"""Longer than the front keeps its connections, so that it never writes into one that closes."""
WAITING_CONNECTIONS: Final = 1024
COMPLAINT_SECONDS: Final = 60.0
_EXHAUSTED: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_BEYOND_ASCII: Final = re.compile(rb"[\x80-\xff]")

log = structlog.get_logger()


class Protocol(HttpToolsProtocol):
    """uvicorn's protocol, plus the reason phrase (`reason` in `http.response.start`) and a check of the peer."""

    allowed_uids: frozenset[int] = frozenset()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Drops peers that are not whom the socket is for."""
        super().connection_made(transport)
        found = peer(transport.get_extra_info("socket"))
        if found.uid not in self.allowed_uids:
            log.warning("connection refused", uid=found.uid, pid=found.pid)
            transport.close()

    def on_headers_complete(self) -> None:
        """Makes paths that uvicorn cannot read readable: several slashes first, bytes beyond ASCII."""
        path = b"/" + self.url.lstrip(b"/") if self.url.startswith(b"/") else self.url
        self.url = _BEYOND_ASCII.sub(lambda found: b"%%%02X" % found[0][0], path)
        super().on_headers_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        super()._start_asgi_task(cycle, cast(Any, _with_reason(app, cycle)))


def _with_reason(app: App, cycle: RequestResponseCycle) -> App:
    async def wrapped(scope: Message, receive: Callable[[], Awaitable[Message]], send: Any) -> None:
        async def send_with_reason(message: Message) -> None:
            reason = message.get("reason") if message["type"] == "http.response.start" else None
            if reason is None:
                await send(message)
                return
            transport = cycle.transport
            line = f"HTTP/1.1 {message['status']} {reason}".encode("latin-1", "replace")
            cycle.transport = cast(asyncio.Transport, _FirstLine(transport, line))
            try:
                await send(message)
            finally:
                cycle.transport = transport

        await app(scope, receive, send_with_reason)

    return wrapped


class _FirstLine:
    """Stands before a transport for one write, and exchanges the status line."""

    def __init__(self, transport: asyncio.Transport, line: bytes) -> None:
        self._transport = transport
        self._line = line

    def write(self, data: bytes) -> None:
        self._transport.write(self._line + data[data.index(b"\r\n") :])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


def client_address(scope: Message, headers: dict[str, str]) -> str:
    """Where a request comes from: what the front says, `local` on root's own socket."""
    if scope.get(ORIGIN) == LOCAL:
        return LOCAL
    return headers.get("x-real-ip", "") or "unknown"


@dataclass(frozen=True)
class Door:
    """One way in: a listening socket, whom it is for, and as whose requests they count."""

    socket: socket.socket
    origin: str
    uids: frozenset[int]


class Complaints:
    """What the event loop complains of. When descriptors run out it is said once a minute, with one kept for that.

    Connections that cannot be accepted wait, and are accepted when others have been closed.
    """

    def __init__(self) -> None:
        self._told = -math.inf
        self._spare: int | None = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not isinstance(error, OSError) or error.errno not in _EXHAUSTED:
            loop.default_exception_handler(context)
            return
        now = time.monotonic()
        if now - self._told < COMPLAINT_SECONDS:
            return
        self._told = now
        if self._spare is not None:
            os.close(self._spare)
        log.error("connections have to wait", reason=error.strerror, what=context.get("message"))
        try:
            self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._spare = None


class Servers:
    """uvicorn on each door, in the running event loop; `run` ends after `stop`."""

    def __init__(self, app: App, doors: list[Door]) -> None:
        self._servers = [_server(app, door) for door in doors]
        self._sockets = [door.socket for door in doors]

    async def run(self) -> None:
        """Serves until `stop` is called and the running requests have ended, or their grace is over."""
        pairs = zip(self._servers, self._sockets, strict=True)
        async with asyncio.TaskGroup() as group:
            for server, connection in pairs:
                group.create_task(server.serve(sockets=[connection]))

    async def started(self) -> None:
        """Waits until all doors are open."""
        for server in self._servers:
            await server.open.wait()

    def stop(self) -> None:
        """Asks to end; may be called from a signal handler of the loop."""
        for server in self._servers:
            server.leave()


class _Server(uvicorn.Server):
    """uvicorn without its own signal handlers, and asleep while nothing happens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.open = asyncio.Event()
        self._leave = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for each in sockets or ():
            each.listen(WAITING_CONNECTIONS)
        self.open.set()

    def leave(self) -> None:
        self.should_exit = True
        self._leave.set()

    async def main_loop(self) -> None:
        await self._leave.wait()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


def _server(app: App, door: Door) -> _Server:
    async def entered(scope: Message, receive: Any, send: Any) -> None:
        scope[ORIGIN] = door.origin
        await app(scope, receive, send)

    config = uvicorn.Config(
        entered,
        http=type("DoorProtocol", (Protocol,), {"allowed_uids": door.uids}),
        ws="none",
        lifespan="off",
        interface="asgi3",
        access_log=False,
        log_config=None,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        # How many the event loop accepts at a time, and so how often it fails at once when descriptors run out.
        backlog=1,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    return _Server(config)
