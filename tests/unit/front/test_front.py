# SPDX-License-Identifier: AGPL-3.0-or-later
"""The real front before a small core: what passes, what is refused, and what happens when somebody dies."""

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import ssl
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from orrery.errors import Failure
from orrery.front.nginx import Address, Settings
from orrery.front.server import Door, Servers, client_address
from orrery.front.supervise import Front
from orrery.system import process
from orrery.system.jail import account
from orrery.system.paths import Paths
from orrery.system.process import ProcessId
from orrery.system.sockets import connect_unix, listen_unix

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("nginx"), reason="needs root and nginx"),
]

INSECURE = ssl.create_default_context()
INSECURE.check_hostname = False
INSECURE.verify_mode = ssl.CERT_NONE


@dataclass
class Reply:
    status: str
    headers: dict[str, str]
    body: bytes


async def core(scope: Any, receive: Any, send: Any) -> None:
    """Tells what reached it, with a reason phrase that no standard knows."""
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
    length = 0
    while True:
        message = await receive()
        length += len(message.get("body", b""))
        if not message.get("more_body"):
            break
    told = {"path": scope["path"], "origin": client_address(scope, headers), "length": length, "headers": headers}
    body = repr(told).encode() + b" " * 2000
    start = [(b"content-type", b"application/json;charset=UTF-8"), (b"content-length", str(len(body)).encode())]
    status = next((number for number in (200, 595) if str(number) in scope["path"]), 500)
    reason = "VM 100 is not running – Gäste"
    await send({"type": "http.response.start", "status": status, "reason": reason, "headers": start})
    await send({"type": "http.response.body", "body": body})


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Running:
    """A front with its core on a port of loopback."""

    def __init__(self, root: Path, **limits: Any) -> None:
        self.address = Address("127.0.0.1", free_port())
        self.paths = Paths.of(root)
        self.user = account("orrery")
        self.paths.create((self.user.uid, self.user.gid))
        settings = Settings(listen=self.address, **limits)
        self.front = Front(self.paths, "n1", self.address, self.user, settings=settings)

    @contextlib.asynccontextmanager
    async def up(self) -> AsyncIterator["Running"]:
        doors = [
            Door(
                listen_unix(self.paths.front_sock, mode=0o660, gid=self.user.gid), "front", frozenset({self.user.uid})
            ),
            Door(listen_unix(self.paths.local_sock), "local", frozenset({0})),
        ]
        servers = Servers(core, doors)
        serving = asyncio.create_task(servers.run())
        try:
            await servers.started()
            await self.front.start()
            yield self
        finally:
            await self.front.stop()
            servers.stop()
            await serving

    async def connect(self, tls: bool = True) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.address.port, ssl=INSECURE if tls else None)

    async def send(self, request: bytes, *, tls: bool = True) -> Reply:
        reader, writer = await self.connect(tls)
        try:
            writer.write(request)
            with contextlib.suppress(ConnectionError):  # refused before all of it was read
                await writer.drain()
            head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)).decode("latin-1").split("\r\n")
            headers = {n.lower(): v.strip() for n, _, v in (line.partition(":") for line in head[1:] if line)}
            length = 0 if request.startswith(b"HEAD") else int(headers.get("content-length", 0))
            body = await reader.readexactly(length)
            return Reply(head[0], headers, body)
        finally:
            writer.close()

    async def get(self, path: str, extra: str = "", *, verb: str = "GET", tls: bool = True, body: bytes = b"") -> Reply:
        length = f"Content-Length: {len(body)}\r\n" if body else ""
        return await self.send(f"{verb} {path} HTTP/1.1\r\nHost: node\r\n{length}{extra}\r\n".encode() + body, tls=tls)


def with_front(scenario: Callable[[Running], Awaitable[None]], root: Path, **limits: Any) -> None:
    async def run() -> None:
        async with Running(root, **limits).up() as running:
            await scenario(running)

    asyncio.run(run())


def test_what_passes(tmp_path: Path) -> None:
    async def scenario(running: Running) -> None:
        reply = await running.get("/api2/json//nodes/a%2Fb?x=1")
        assert reply.status == "HTTP/1.1 500 VM 100 is not running ? Gäste"
        told = eval(reply.body)  # noqa: S307 - our own core wrote it
        assert told["path"] == "/api2/json//nodes/a/b"
        assert told["origin"] == "127.0.0.1"
        assert (await running.get("/api2/json/595")).status.startswith("HTTP/1.1 595 VM 100 is")
        reply = await running.get("/api2/json/200", "Accept-Encoding: gzip\r\n")
        assert reply.headers["content-encoding"] == "gzip"

    with_front(scenario, tmp_path)


def test_what_clients_say_of_themselves_is_dropped(tmp_path: Path) -> None:
    forged = "X-Real-IP: 10.0.0.1\r\nX-Forwarded-For: 10.0.0.1\r\nPVEClientIP: 10.0.0.1\r\nPVEDisableProxy: 1\r\n"
    forged += "X-Transfer-Encoding: chunked\r\nX-Body-Length: 5\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n"

    async def scenario(running: Running) -> None:
        told = eval((await running.get("/api2/json/x", forged)).body)  # noqa: S307
        assert told["origin"] == "127.0.0.1"
        assert set(told["headers"]) == {"host", "x-real-ip"}

    with_front(scenario, tmp_path)


def test_plain_http_is_sent_to_https(tmp_path: Path) -> None:
    async def scenario(running: Running) -> None:
        for verb, status in (("GET", 301), ("HEAD", 301), ("POST", 308), ("PUT", 308)):
            reply = await running.send(f"{verb} /x?y=1 HTTP/1.1\r\nHost: node:8006\r\n\r\n".encode(), tls=False)
            assert reply.status.startswith(f"HTTP/1.1 {status} ")
            assert reply.headers["location"] == "https://node:8006/x?y=1"

    with_front(scenario, tmp_path)


def test_the_page_has_a_strict_policy(tmp_path: Path) -> None:
    async def scenario(running: Running) -> None:
        reply = await running.get("/")
        assert reply.status == "HTTP/1.1 200 OK"
        assert reply.headers["content-type"] == "text/html; charset=utf-8"
        assert "default-src 'none'" in reply.headers["content-security-policy"]
        assert b"<script src=" in reply.body
        assert b"style=" not in reply.body
        assert (await running.get("/page/page.js")).headers["content-type"].startswith("text/javascript")
        assert (await running.get("/page/../nginx.conf")).status.startswith("HTTP/1.1 500 VM")
        assert (await running.get("/page/nothing")).status.startswith("HTTP/1.1 404 ")

    with_front(scenario, tmp_path)


def test_bodies(tmp_path: Path) -> None:
    async def scenario(running: Running) -> None:
        told = eval((await running.get("/api2/json/x", verb="POST", body=b"x" * 550_000)).body)  # noqa: S307
        assert told["length"] == 550_000
        # Too large for the front: the core is told how large, and says what is wrong.
        told = eval((await running.get("/api2/json/x", verb="POST", body=b"x" * 700_000)).body)  # noqa: S307
        assert (told["length"], told["headers"]["x-body-length"]) == (0, "700000")
        upload = "/api2/json/nodes/n/storage/local/upload"
        told = eval((await running.get(upload, verb="POST", body=b"x" * 3_000_000)).body)  # noqa: S307
        assert told["length"] == 3_000_000
        chunked = b"POST /api2/json/x HTTP/1.1\r\nHost: n\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
        told = eval((await running.send(chunked)).body)  # noqa: S307
        assert told["headers"]["x-transfer-encoding"] == "chunked"

    with_front(scenario, tmp_path)


@pytest.mark.parametrize(
    ("request_text", "status"),
    [
        (b"GET /x HTTP/1.1\r\n\r\n", 400),
        (b"BREW /x HTTP/1.1\r\nHost: n\r\n\r\n", 501),
        (b"GET /" + b"x" * 32_800 + b" HTTP/1.1\r\nHost: n\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\nHost: n\r\nX: " + b"x" * 40_000 + b"\r\n\r\n", 400),
        (b"GET /\0 HTTP/1.1\r\nHost: n\r\n\r\n", 400),
        (b"POST /x HTTP/1.1\r\nHost: n\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"nonsense\r\n\r\n", 400),
    ],
)
def test_requests_that_are_none(tmp_path: Path, request_text: bytes, status: int) -> None:
    async def scenario(running: Running) -> None:
        try:
            reply = await running.send(request_text)
        except ConnectionResetError:
            # The front does not wait for the rest of a head that is too large; its answer may be lost on the way.
            assert len(request_text) > 32_000
        else:
            assert reply.status.split()[1] == str(status)
        assert (await running.get("/api2/json/200")).status.startswith("HTTP/1.1 200 ")

    with_front(scenario, tmp_path)


def test_slow_clients_are_let_go(tmp_path: Path) -> None:
    async def scenario(running: Running) -> None:
        reader, writer = await running.connect()
        begun = time.monotonic()
        with contextlib.suppress(ConnectionError):
            for _ in range(60):
                writer.write(b"X: y\r\n" if _ else b"GET / HTTP/1.1\r\n")
                await writer.drain()
                if reader.at_eof():
                    break
                await asyncio.sleep(0.1)
        assert time.monotonic() - begun < 4
        writer.close()
        reader, writer = await running.connect()
        writer.write(b"POST /api2/json/x HTTP/1.1\r\nHost: n\r\nContent-Length: 10\r\n\r\nabc")
        begun = time.monotonic()
        with contextlib.suppress(ConnectionError):
            await reader.read()
        assert time.monotonic() - begun < 4
        writer.close()

    with_front(scenario, tmp_path, header_timeout=1, body_timeout=1)


def test_one_address_cannot_take_all_connections(tmp_path: Path) -> None:
    async def scenario(running: Running) -> None:
        busy = []
        for _ in range(3):
            _, writer = await running.connect()
            writer.write(
                b"POST /api2/json/nodes/n/storage/l/upload HTTP/1.1\r\nHost: n\r\nContent-Length: 9\r\n\r\nabc"
            )
            await writer.drain()
            busy.append(writer)
        await asyncio.sleep(0.2)
        assert (await running.get("/api2/json/x")).status.startswith("HTTP/1.1 503 ")
        for writer in busy:
            writer.close()

    with_front(scenario, tmp_path, connections_per_address=3)


def wait_for_end(processes: list[ProcessId]) -> None:
    for each in processes:
        assert process.wait(each, 10)


def status_of(pid: int) -> dict[str, str]:
    return dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())


def test_no_rights_and_no_leftovers(tmp_path: Path) -> None:
    async def scenario(running: Running) -> None:
        master = running.front.process
        assert master is not None
        end = time.monotonic() + 10
        while len(members := process.session_members(master)) < 3:  # the pid file comes before the workers
            assert time.monotonic() < end
            await asyncio.sleep(0.01)
        for member in members:
            fields = status_of(member.pid)
            assert fields["Uid"].split() == [str(running.user.uid)] * 4
            for name in ("CapPrm", "CapEff", "CapBnd", "CapAmb"):
                assert int(fields[name], 16) == 0
            assert fields["NoNewPrivs"].strip() == "1"
        assert running.paths.tls_key.stat().st_uid == running.user.uid
        running.members = members  # type: ignore[attr-defined]

    async def run() -> Running:
        async with Running(tmp_path).up() as running:
            await scenario(running)
        return running

    running = asyncio.run(run())
    assert not any(process.alive(member) for member in running.members)  # type: ignore[attr-defined]
    assert not running.paths.nginx_process.exists()


def test_a_dead_front_comes_back(tmp_path: Path) -> None:
    async def scenario(running: Running) -> None:
        master = running.front.process
        assert master is not None
        workers = [member for member in process.session_members(master) if member != master]
        os.kill(master.pid, signal.SIGKILL)
        await asyncio.to_thread(wait_for_end, workers)
        # The listening socket stays open, so that the request waits instead of being refused.
        assert (await running.get("/api2/json/x")).status.startswith("HTTP/1.1 500 VM")
        assert running.front.process != master
        assert (await running.get("/api2/json/x")).status.startswith("HTTP/1.1 500 VM")

    with_front(scenario, tmp_path)


def test_a_taken_port_is_said_plainly(tmp_path: Path) -> None:
    async def run() -> None:
        running = Running(tmp_path)
        with socket.socket() as other:
            other.bind(("127.0.0.1", running.address.port))
            other.listen()
            with pytest.raises(Failure, match=r"unable to listen on 127\.0\.0\.1:.*another program listens there"):
                await running.front.start()

    asyncio.run(run())


_CORE = """
import asyncio, sys
from pathlib import Path
from tests.unit.front.test_front import Running
async def main():
    async with Running(Path(sys.argv[1])).up() as running:
        print("up", running.address.port, running.front.process.pid, running.front.process.start, flush=True)
        await asyncio.sleep(60)
asyncio.run(main())
"""


def test_the_front_dies_with_its_core_and_leftovers_are_ended(tmp_path: Path) -> None:
    async def run() -> None:
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            _CORE,
            str(tmp_path),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        assert child.stdout is not None
        line = b""
        while not line.startswith(b"up "):
            line = await asyncio.wait_for(child.stdout.readline(), 20)
        master = ProcessId(*map(int, line.split()[2:]))
        end = time.monotonic() + 10
        while len(members := process.session_members(master)) < 3:  # the pid file comes before the workers
            assert time.monotonic() < end
            await asyncio.sleep(0.01)
        child.kill()
        await child.wait()
        await asyncio.to_thread(wait_for_end, members)
        async with Running(tmp_path).up() as running:
            assert (await running.get("/api2/json/x")).status.startswith("HTTP/1.1 500 VM")

    asyncio.run(run())


def test_the_local_socket_is_root_s(tmp_path: Path) -> None:
    def ask(path: Path) -> bytes:
        with connect_unix(path, 5) as connection:
            connection.sendall(
                b"GET /api2/json/x HTTP/1.1\r\nHost: n\r\nX-Real-IP: 10.0.0.1\r\nConnection: close\r\n\r\n"
            )
            with contextlib.suppress(ConnectionResetError):
                return b"".join(iter(lambda: connection.recv(65536), b""))
            return b""

    async def scenario(running: Running) -> None:
        assert b"'origin': 'local'" in await asyncio.to_thread(ask, running.paths.local_sock)
        # Root itself is not the front: the front's socket takes connections of the front's user alone.
        assert await asyncio.to_thread(ask, running.paths.front_sock) == b""

    with_front(scenario, tmp_path)
