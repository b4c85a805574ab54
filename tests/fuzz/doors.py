# SPDX-License-Identifier: AGPL-3.0-or-later
"""The ways in: by TLS with an API token, and by local root's socket. Requests are sent as generated, byte for byte."""

import contextlib
import http.client
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests

from orrery.system.sockets import connect_unix

SECONDS = 20.0
"""Whoever waits longer for an answer calls it a hang."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back."""

    status: int
    reason: str
    body: bytes


class Door:
    """A client that makes a connection for every request."""

    name = ""
    base = "http://localhost"
    headers: dict[str, str]

    def connect(self) -> http.client.HTTPConnection:
        """A fresh connection."""
        raise NotImplementedError

    def send(self, case: Any) -> Answer | None:
        """Sends a generated case; None for one that cannot be written as HTTP."""
        parts = case.as_transport_kwargs(base_url=f"{self.base}/api2/json")
        given = {name: parts[name] for name in ("method", "url", "params", "data", "json", "files") if name in parts}
        try:
            prepared = requests.Request(headers={**parts.get("headers", {}), **self.headers}, **given).prepare()
            body: Any = prepared.body
            body = body if isinstance(body, bytes | str | None) else b"".join(body)
            url = urlsplit(str(prepared.url))
            target = url.path + (f"?{url.query}" if url.query else "")
            target.encode("ascii")
        except (requests.RequestException, ValueError, TypeError, UnicodeError):
            return None
        return self.exchange(
            str(prepared.method), target, body, {name: str(value) for name, value in prepared.headers.items()}
        )

    def exchange(self, verb: str, target: str, body: bytes | str | None, headers: dict[str, str]) -> Answer | None:
        """One request and its answer; None when the connection was closed upon a body that nobody wants to read."""
        connection = self.connect()
        data = body.encode() if isinstance(body, str) else body
        try:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.request(verb, target, body=data, headers=headers)
            with connection.getresponse() as response:
                return Answer(response.status, response.reason, response.read())
        except ConnectionError:
            if data and verb in ("GET", "DELETE"):
                return None
            raise
        finally:
            connection.close()


class TokenDoor(Door):
    """By TLS, as a user's token."""

    def __init__(self, port: int, certificate: Path, name: str, token: str) -> None:
        self.name = name
        self.base = f"https://127.0.0.1:{port}"
        self.headers = {"Authorization": f"PVEAPIToken={token}"}
        self._port = port
        self._trust = ssl.create_default_context(cafile=str(certificate))

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPSConnection("127.0.0.1", self._port, timeout=SECONDS, context=self._trust)


class RootDoor(Door):
    """By the local socket, as root@pam."""

    name = "root"

    def __init__(self, path: Path) -> None:
        self.headers = {}
        self._path = path

    def connect(self) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection("localhost", timeout=SECONDS)
        connection.sock = connected(self._path)
        return connection


def connected(path: Path) -> socket.socket:
    """A stream to a unix socket, however long its path is."""
    made = connect_unix(path, SECONDS)
    made.settimeout(SECONDS)
    return made
