# SPDX-License-Identifier: AGPL-3.0-or-later
"""A client of the API in the same process: requests as an ASGI server hands them over, answers with their reason."""

import asyncio
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, unquote, urlencode

import orjson

from orrery.api.app import Api


@dataclass(frozen=True)
class Answer:
    status: int
    reason: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)

    @property
    def data(self) -> Any:
        return self.json["data"]

    @property
    def errors(self) -> dict[str, str]:
        return dict(self.json.get("errors", {}))


@dataclass
class Wire:
    """Sends requests to `api`; `headers` go with each of them."""

    api: Api
    headers: dict[str, str] = field(default_factory=dict)
    root: bool = False

    def local(self) -> "Wire":
        """The same node, through root's own socket."""
        return Wire(self.api, root=True)

    def with_ticket(self, username: str, password: str) -> "Wire":
        answer = self.post("/access/ticket", username=username, password=password)
        assert answer.status == 200, answer
        ticket, csrf = answer.data["ticket"], answer.data["CSRFPreventionToken"]
        return Wire(self.api, {"cookie": f"PVEAuthCookie={quote(ticket)}", "csrfpreventiontoken": csrf})

    def with_token(self, token: str, value: str) -> "Wire":
        return Wire(self.api, {"authorization": f"PVEAPIToken={token}={value}"})

    def get(self, path: str, /, **params: Any) -> Answer:
        return self.send("GET", path, query=urlencode(params).encode())

    def delete(self, path: str, /, **params: Any) -> Answer:
        return self.send("DELETE", path, query=urlencode(params).encode())

    def post(self, path: str, /, **params: Any) -> Answer:
        return self.send("POST", path, body=urlencode(params, doseq=True).encode())

    def put(self, path: str, /, **params: Any) -> Answer:
        return self.send("PUT", path, body=urlencode(params, doseq=True).encode())

    def send(self, verb: str, path: str, **request: Any) -> Answer:
        """One request; see `exchange`."""
        return asyncio.run(self.exchange(verb, path, **request))

    async def exchange(
        self,
        verb: str,
        path: str,
        *,
        query: bytes = b"",
        body: bytes = b"",
        headers: dict[str, str] | None = None,
        prefix: str = "/api2/json",
    ) -> Answer:
        """One request. `path` is as in a URL: percent-encoded."""
        sent = {"host": "node", **self.headers}
        if body:
            sent |= {"content-type": "application/x-www-form-urlencoded", "content-length": str(len(body))}
        sent |= headers or {}
        scope = {
            "type": "http",
            "method": verb,
            "path": unquote(prefix + path),
            "raw_path": (prefix + path).encode(),
            "query_string": query,
            "headers": [(n.encode("latin-1"), v.encode("latin-1")) for n, v in sent.items()],
            "root": self.root,
        }
        return await _exchange(self.api, scope, body)


async def _exchange(api: Api, scope: dict[str, Any], body: bytes) -> Answer:
    parts = [{"type": "http.request", "body": body, "more_body": False}]
    sent: list[Any] = []

    async def receive() -> Any:
        return parts.pop() if parts else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    await api(scope, receive, send)
    start = sent[0]
    headers = {name.decode(): value.decode("latin-1") for name, value in start["headers"]}
    content = b"".join(message.get("body", b"") for message in sent[1:])
    return Answer(start["status"], start.get("reason", ""), headers, content)
