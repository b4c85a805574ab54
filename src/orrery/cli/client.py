# SPDX-License-Identifier: AGPL-3.0-or-later
"""The command line's way to a node: local root's socket, or HTTPS with a token or a password.

The command line is a client of the REST API and has no other power: what it can do, a program can do.
"""

import contextlib
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import httpx2

from orrery.errors import (
    AlreadyExists,
    Cancelled,
    Conflict,
    Corrupt,
    Failure,
    Forbidden,
    Locked,
    NoSpace,
    NotFound,
    NotSupported,
    OrreryError,
    ParameterError,
    Unauthenticated,
)
from orrery.system.sockets import short_path

API = "/api2/json"
UPLOAD_TIMEOUT = httpx2.Timeout(60, write=None)
POLL_SECONDS = 0.2
"""How often a running task is asked for its progress."""

BY_STATUS: dict[int, type[OrreryError]] = {401: Unauthenticated, 403: Forbidden, 501: NotSupported}
BY_CODE: dict[str, type[OrreryError]] = {
    each.code: each for each in (AlreadyExists, Cancelled, Conflict, Corrupt, Locked, NoSpace, NotFound)
}
"""What a status of 500 stands for, so that exit codes tell errors apart."""

ERROR_HEADER = "orrery-error"


@dataclass(frozen=True)
class Target:
    """Which node to speak to, and as whom. Without `server` it is the local node under `socket`, as root."""

    socket: Path
    server: str | None = None
    user: str | None = None
    password_file: Path | None = None
    token_file: Path | None = None
    ca_file: Path | None = None


class Client:
    """Speaks to one node. Errors of the node are raised as our own, with its text."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._exit = contextlib.ExitStack()
        if target.server is None:
            try:
                present = target.socket.exists()
            except PermissionError as error:
                raise Forbidden(
                    "only root may speak to the node of this machine without a login; see --server"
                ) from error
            if not present:
                raise Failure(f"no node runs here ('{target.socket}' is missing): start it with `orrery serve`")
            short = self._exit.enter_context(short_path(target.socket))
            transport = httpx2.HTTPTransport(uds=short)
            self._http = httpx2.Client(transport=transport, base_url="http://localhost", timeout=60)
        else:
            try:
                verify = ssl.create_default_context(cafile=str(target.ca_file) if target.ca_file else None)
            except OSError as error:
                raise Failure(f"cannot use '{target.ca_file}' as a certificate: {error}") from error
            self._http = httpx2.Client(base_url=target.server, verify=verify, timeout=60)
            self._sign_in()

    def _sign_in(self) -> None:
        if self.target.token_file is not None:
            token = _secret(self.target.token_file)
            self._http.headers["Authorization"] = f"PVEAPIToken={token}"
        elif self.target.user is not None and self.target.password_file is not None:
            password = _secret(self.target.password_file)
            reply = self.call("POST", "/access/ticket", {"username": self.target.user, "password": password})
            self._http.headers["Authorization"] = f"PVEAuthCookie={reply['ticket']}"
            self._http.headers["CSRFPreventionToken"] = reply["CSRFPreventionToken"]
        else:
            raise Failure("a remote node wants --token-file, or --as with --password-file")

    def call(self, verb: str, path: str, parameters: Mapping[str, Any] | None = None) -> Any:
        """One request; its `data`. Raises the error that the node answered with."""
        return self.envelope(verb, path, parameters).get("data")

    def envelope(self, verb: str, path: str, parameters: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """One request; the whole reply, with `total` where lists have pages."""
        sent = {name: _wire(value) for name, value in (parameters or {}).items() if value is not None}
        where = API + "/" + path.lstrip("/")
        try:
            if verb in ("GET", "DELETE"):
                response = self._http.request(verb, where, params=sent)
            else:
                response = self._http.request(verb, where, data=sent)
        except httpx2.HTTPError as error:
            raise self._silent(error) from error
        if response.status_code != 200:
            raise _error(response)
        reply = response.json()
        return reply if isinstance(reply, dict) else {"data": reply}

    def _silent(self, error: httpx2.HTTPError) -> Failure:
        """Why there is no answer, and what to do about it."""
        if self.target.server is None and isinstance(error, httpx2.ConnectError):
            return Failure(
                f"no node runs here (nobody listens at '{self.target.socket}'): start it with `orrery serve`"
            )
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            return Failure(f"{error}; name the node's own certificate (etc/tls/cert.pem there) with --ca-file")
        return Failure(f"the node does not answer: {error}")

    def upload(
        self,
        path: str,
        fields: Mapping[str, str],
        file: Path,
        name: str,
        watched: Callable[[BinaryIO], BinaryIO] | None = None,
    ) -> Any:
        """Sends a file, read through `watched` if given, as the wire's upload wants it; its task's UPID."""
        with file.open("rb") as opened:
            stream = watched(opened) if watched else opened
            try:
                response = self._http.post(
                    API + path,
                    data=dict(fields),
                    files={"filename": (name, stream)},
                    timeout=UPLOAD_TIMEOUT,
                )
            except httpx2.HTTPError as error:
                raise Failure(f"the upload broke off: {error}") from error
        if response.status_code != 200:
            raise _error(response)
        return response.json()["data"]

    def node(self) -> str:
        """Name of the node that answers. Everybody may list the nodes, not everybody the cluster's status."""
        nodes = self.call("GET", "/nodes")
        if len(nodes) == 1:
            return str(nodes[0]["node"])
        rows = self.call("GET", "/cluster/status")
        return next(str(row["name"]) for row in rows if row.get("type") == "node" and row.get("local"))

    def follow(self, upid: str) -> Iterator[dict[str, Any]]:
        """States of a task until it has ended, the last one included."""
        where = f"/nodes/{upid.split(':')[1]}/tasks/{upid}/status"
        while True:
            state = self.call("GET", where)
            yield state
            if state["status"] == "stopped":
                return
            time.sleep(POLL_SECONDS)

    def wait(self, upid: str, watch: Callable[[dict[str, Any]], None] | None = None) -> None:
        """Waits for a task's end. Raises `Failure` with its exit status when it failed."""
        state: dict[str, Any] = {}
        for state in self.follow(upid):
            if watch is not None:
                watch(state)
        status = str(state.get("exitstatus", "unexpected status"))
        if status != "OK" and not status.startswith("WARNINGS"):
            raise Failure(status)


def _secret(file: Path) -> str:
    """The first line of a file. Raises `Failure`."""
    try:
        return file.read_text().splitlines()[0].strip()
    except (OSError, UnicodeDecodeError, IndexError) as error:
        raise Failure(f"cannot read a line from '{file}': {error}") from error


def _wire(value: Any) -> Any:
    return int(value) if isinstance(value, bool) else value


def _error(response: httpx2.Response) -> OrreryError:
    errors: dict[str, str] = {}
    message = response.reason_phrase or f"HTTP status {response.status_code}"
    try:
        body = response.json()
    except ValueError:
        body = {}
    if isinstance(body, dict):
        message = str(body.get("message") or message).strip()
        errors = {str(name): str(text) for name, text in (body.get("errors") or {}).items()}
    if response.status_code == 400:
        return ParameterError(errors, message)
    known = BY_STATUS.get(response.status_code) or BY_CODE.get(response.headers.get(ERROR_HEADER, ""), Failure)
    return known(message)
