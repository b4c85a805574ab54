# SPDX-License-Identifier: AGPL-3.0-or-later
"""The tests' client of the REST API: independent of the command line's, and strict about what a reply must be."""

import contextlib
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2

from orrery.system.sockets import short_path

TASK_SECONDS = 60.0
POLL_SECONDS = 0.05


ONE_BY_ONE = httpx2.Limits(max_keepalive_connections=0)
"""A connection that is kept may be closed by the server just when it is used again, which is nobody's fault."""


class ApiError(AssertionError):
    """A reply that is no success: `status`, `reason` (the phrase behind it), `errors` by parameter, `message`."""

    def __init__(self, response: httpx2.Response, request: str) -> None:
        body: Any = {}
        with contextlib.suppress(ValueError):
            body = response.json()
        self.status = response.status_code
        self.reason = response.reason_phrase
        self.errors: dict[str, str] = (body.get("errors") or {}) if isinstance(body, dict) else {}
        self.message = str(body.get("message") or "").strip() if isinstance(body, dict) else ""
        super().__init__(f"{request}: {self.status} {self.reason} {self.errors or ''} {response.text[:500]}")


class TaskFailed(AssertionError):
    """A task that ended otherwise than well: `upid`, `exitstatus`, `log`."""

    def __init__(self, upid: str, exitstatus: str, log: list[str]) -> None:
        self.upid = upid
        self.exitstatus = exitstatus
        self.log = log
        super().__init__(f"{upid}: {exitstatus}\n" + "\n".join(log))


class Api:
    """One user's way to a node: `api.get("/version")`; parameters as keywords, underscores stand for hyphens.

    A parameter whose real name has an underscore, or a list, goes into the dict `also`.
    """

    def __init__(self, http: httpx2.Client, hung: Callable[[], None] = lambda: None) -> None:
        self.http = http
        self._hung = hung
        """Called when the node does not answer in time: tells where it hangs."""
        self._exit = contextlib.ExitStack()
        self._exit.callback(http.close)

    @classmethod
    def local(cls, socket: Path, hung: Callable[[], None] = lambda: None) -> "Api":
        """As root@pam by the local socket."""
        exit_stack = contextlib.ExitStack()
        short = exit_stack.enter_context(short_path(socket))
        transport = httpx2.HTTPTransport(uds=short)
        api = cls(httpx2.Client(limits=ONE_BY_ONE, transport=transport, base_url="http://localhost", timeout=60), hung)
        api._exit.push(exit_stack)
        return api

    @classmethod
    def remote(cls, url: str, certificate: Path, hung: Callable[[], None] = lambda: None) -> "Api":
        """By TLS, as nobody yet."""
        trust = ssl.create_default_context(cafile=str(certificate))
        trust.check_hostname = False
        return cls(httpx2.Client(limits=ONE_BY_ONE, base_url=url, verify=trust, timeout=60), hung)

    def log_in(self, user: str, password: str) -> "Api":
        """Logs in by password; from now on requests carry the ticket."""
        reply = self.post("/access/ticket", username=user, password=password)
        self.http.headers["Cookie"] = f"PVEAuthCookie={reply['ticket']}"
        self.http.headers["CSRFPreventionToken"] = reply["CSRFPreventionToken"]
        return self

    def close(self) -> None:
        self._exit.close()

    def send(self, verb: str, path: str, parameters: dict[str, Any] | None = None) -> httpx2.Response:
        """One request, whatever comes of it. Booleans are sent as 0 and 1, None not at all."""
        sent = {
            name: int(value) if isinstance(value, bool) else value
            for name, value in (parameters or {}).items()
            if value is not None
        }
        where = f"/api2/json{path}"
        try:
            if verb in ("GET", "DELETE"):
                return self.http.request(verb, where, params=sent)
            return self.http.request(verb, where, data=sent)
        except httpx2.TimeoutException:
            self._hung()
            raise

    def call(self, verb: str, path: str, parameters: dict[str, Any] | None = None) -> Any:
        """The `data` of a successful reply. Raises ApiError."""
        response = self.send(verb, path, parameters)
        if response.status_code != 200:
            raise ApiError(response, f"{verb} {path}")
        return response.json()["data"]

    def get(self, path: str, also: dict[str, Any] | None = None, /, **parameters: Any) -> Any:
        return self.call("GET", path, _names(parameters, also))

    def post(self, path: str, also: dict[str, Any] | None = None, /, **parameters: Any) -> Any:
        return self.call("POST", path, _names(parameters, also))

    def put(self, path: str, also: dict[str, Any] | None = None, /, **parameters: Any) -> Any:
        return self.call("PUT", path, _names(parameters, also))

    def delete(self, path: str, also: dict[str, Any] | None = None, /, **parameters: Any) -> Any:
        return self.call("DELETE", path, _names(parameters, also))

    # --- tasks

    def state(self, upid: str) -> dict[str, Any]:
        """The state of a task."""
        found: dict[str, Any] = self.get(f"/nodes/{upid.split(':')[1]}/tasks/{upid}/status")
        return found

    def log(self, upid: str) -> list[str]:
        """The lines of a task's log."""
        lines = self.get(f"/nodes/{upid.split(':')[1]}/tasks/{upid}/log", limit=0)
        return [str(line["t"]) for line in lines]

    def ended(self, upid: str, seconds: float = TASK_SECONDS) -> str:
        """Waits for a task; its exit status, whatever it is."""
        end = time.monotonic() + seconds
        while (state := self.state(upid))["status"] != "stopped":
            assert time.monotonic() < end, f"{upid} has not ended in {seconds} s:\n" + "\n".join(self.log(upid))
            time.sleep(POLL_SECONDS)
        return str(state["exitstatus"])

    def wait(self, upid: str, seconds: float = TASK_SECONDS) -> list[str]:
        """Waits for a task that must end with OK; its log. Raises TaskFailed, also for warnings."""
        status = self.ended(upid, seconds)
        log = self.log(upid)
        if status != "OK":
            raise TaskFailed(upid, status, log)
        return log


def _names(parameters: dict[str, Any], also: dict[str, Any] | None) -> dict[str, Any]:
    return {name.rstrip("_").replace("_", "-"): value for name, value in parameters.items()} | (also or {})
