# SPDX-License-Identifier: AGPL-3.0-or-later
"""The way of a request: credentials, routing, permission, parameters, answer, audit line."""

import asyncio
import time
from typing import Annotated, Any

import pytest
from tests.unit.api.conftest import ADMIN_PASSWORD, NODE
from tests.unit.api.wire import Wire

from orrery.access.rules import Everyone, Perm, RootOnly, World
from orrery.api.app import WAITING_REFUSALS
from orrery.api.call import Call
from orrery.api.endpoint import Registry, endpoint
from orrery.api.manners import Int, Text
from orrery.api.parameters import Boolean, Params
from orrery.api.reply import Result
from orrery.api.services import Services
from orrery.errors import Failure, NodeTimeout, Unauthenticated


class Thing(Params):
    name: Annotated[str, Text(max_length=10)]
    count: Annotated[int, Int(minimum=1)] | None = None
    flag: Boolean = False


class Fetch(Params):
    url: Annotated[str, Text()]


class NodeThing(Params):
    node: Annotated[str, Text()]


@pytest.fixture
def wire(make_wire: Any) -> Wire:
    """An API with one method of each kind, beside a login."""
    registry = Registry()

    def declare(verb: str, path: str, handler: Any, **options: Any) -> None:
        endpoint(verb, path, registry=registry, **{"permission": Everyone(), **options})(handler)

    def log_in(call: Call, p: Any) -> Any:
        session = call.services.login.log_in(p.username, p.password, call.origin)
        return {"ticket": session.ticket, "CSRFPreventionToken": session.csrf}

    class LogIn(Params):
        username: Annotated[str, Text()]
        password: Annotated[str, Text()]

    def fail(error: Exception) -> Any:
        def handler(call: Call, p: Any) -> None:
            raise error

        return handler

    async def stream(call: Call, p: Thing) -> Any:
        assert call.request is not None
        return len(await call.request.body())

    declare("POST", "/access/ticket", log_in, params=LogIn, permission=World(), tokens=False)
    declare("GET", "/world", lambda call, p: call.origin, params=Params, permission=World())
    declare("GET", "/me", lambda call, p: str(call.identity), params=Params)
    declare("POST", "/things", lambda call, p: p.model_dump(), params=Thing)
    declare("GET", "/things", lambda call, p: Result([1], beside={"total": 9}), params=Params)
    declare("POST", "/fetch", lambda call, p: None, params=Fetch)
    declare("PUT", "/things", lambda call, p: None, params=Thing, permission=Perm("/vms/{name}", ("VM.Audit",)))
    declare("DELETE", "/things", lambda call, p: None, params=Params, permission=RootOnly())
    declare("GET", "/tickets-only", lambda call, p: None, params=Params, tokens=False)
    declare("GET", "/nodes/{node}/here", lambda call, p: p.node, params=NodeThing, proxy="node")
    declare("GET", "/fails", fail(Failure("VM 100 not running\r\nX-Evil: 1")), params=Params)
    declare("GET", "/bug", fail(ZeroDivisionError("secret detail")), params=Params)
    declare("GET", "/away", fail(NodeTimeout("timed out")), params=Params)
    declare("POST", "/nodes/{node}/upload", stream, params=NodeThing, upload=True)
    made: Wire = make_wire(registry)
    return made


@pytest.fixture
def admin(wire: Wire) -> Wire:
    return wire.with_ticket("admin@pve", ADMIN_PASSWORD)


@pytest.fixture
def token(services: Services, wire: Wire) -> Wire:
    made = services.directory.tokens.create("admin@pve", "robot", privsep=True)
    return wire.with_token(made["full-tokenid"], made["value"])


# --- credentials


def test_without_credentials(wire: Wire) -> None:
    for path in ("/me", "/no/such/thing", "/"):
        answer = wire.get(path)
        assert (answer.status, answer.reason, answer.body) == (401, "No ticket", b"")
        assert "content-type" not in answer.headers
        assert answer.headers["connection"] == "close"
    assert wire.get("/world").data == "192.0.2.1"


@pytest.mark.parametrize(
    "headers",
    [
        {"cookie": "PVEAuthCookie=PVE:admin@pve:00000000::AAAA"},
        {"cookie": "PVEAuthCookie=%"},
        {"authorization": "PVEAuthCookie=x"},
        {"authorization": "PVEAPIToken=admin@pve!robot=00000000-0000-0000-0000-000000000000"},
        {"authorization": "PVEAPIToken="},
        {"authorization": "PVEAPIToken=\x7f!!==@@"},
    ],
)
def test_bad_credentials(wire: Wire, headers: dict[str, str]) -> None:
    answer = wire.send("GET", "/me", headers=headers)
    assert (answer.status, answer.body) == (401, b"")
    assert answer.reason in ("Authentication failed!", "No ticket")


def test_tickets_in_all_their_places(wire: Wire, admin: Wire) -> None:
    encoded = admin.headers["cookie"].partition("=")[2]
    assert admin.get("/me").data == "admin@pve"
    for headers in (
        {"cookie": f"__Host-OrreryAuth={encoded}"},
        {"authorization": f"PVEAuthCookie={encoded}"},
        {"cookie": f"a=b; PVEAuthCookie={encoded}", "authorization": "PVEAPIToken=x@y!z=bad"},
    ):
        assert wire.send("GET", "/me", headers=headers).data == "admin@pve"


def test_changes_by_ticket_need_the_csrf_token(wire: Wire, admin: Wire) -> None:
    cookie = {"cookie": admin.headers["cookie"]}
    for headers in (cookie, cookie | {"csrfpreventiontoken": "00000000:AAAA"}):
        answer = wire.send("POST", "/things", body=b"name=a", headers=headers)
        assert (answer.status, answer.reason) == (401, "Permission denied - invalid csrf token")
        assert answer.body == b""
    assert admin.post("/things", name="a").status == 200


def test_tokens_need_none_and_are_refused_where_said(token: Wire) -> None:
    assert token.get("/me").data == "admin@pve!robot"
    assert token.post("/things", name="a").status == 200
    answer = token.get("/tickets-only")
    assert answer.status == 403
    assert answer.reason == (
        "Permission check failed (URI '/tickets-only' not available with API token, need proper ticket.)"
    )


def test_privilege_separation(admin: Wire, token: Wire) -> None:
    assert admin.put("/things", name="100").status == 200
    answer = token.put("/things", name="100")
    assert (answer.status, answer.reason) == (403, "Permission check failed (/vms/100, VM.Audit)")


def test_local_root_needs_no_credentials(wire: Wire) -> None:
    root = wire.local()
    assert root.get("/me").data == "root@pam"
    assert root.delete("/things").status == 200
    assert root.post("/things", name="a").status == 200


def test_addresses_come_from_the_front_alone(wire: Wire, services: Services) -> None:
    wire.send("GET", "/me", headers={"x-real-ip": "198.51.100.7", "x-forwarded-for": "10.0.0.1", "pveclientip": "::1"})
    assert services.audit.read()[0]["origin"] == "198.51.100.7"


# --- routing


def test_unknown_methods(admin: Wire) -> None:
    answer = admin.get("/foo/bar")
    assert (answer.status, answer.reason) == (501, "Method 'GET /foo/bar' not implemented")
    assert answer.json["message"] == "Method 'GET /foo/bar' not implemented\n"
    assert admin.put("/me").status == 501
    assert admin.send("PATCH", "/me").reason == "method 'PATCH' not available"
    assert admin.send("GET", "/me", prefix="/api2/png").status == 501
    assert admin.send("GET", "/x", prefix="").reason == "no such file '/x'"


def test_slashes(admin: Wire) -> None:
    assert admin.get("//me/").data == "admin@pve"
    assert admin.get("/nodes%2Flocalhost%2Fhere").data == NODE


def test_other_nodes(admin: Wire) -> None:
    assert admin.get(f"/nodes/{NODE}/here").data == NODE
    answer = admin.get("/nodes/n2/here")
    assert answer.status == 500
    assert answer.reason.startswith("hostname lookup 'n2' failed - ")


# --- parameters


def test_parameters_from_all_places(admin: Wire) -> None:
    answer = admin.send("POST", "/things", query=b"count=2&_dc=17", body=b"name=a&count=1")
    assert answer.data == {"name": "a", "count": 2, "flag": 0}
    json = {"content-type": "application/json"}
    assert admin.send("POST", "/things", body=b'{"name":"a","flag":true}', headers=json).data["flag"] == 1
    for headers in ({"content-type": ""}, {"content-type": "application/x-www-form-urlencoded;charset=utf-8"}):
        assert admin.send("POST", "/things", body=b"name=a", headers=headers).data["name"] == "a"


def test_faulty_parameters(admin: Wire) -> None:
    answer = admin.post("/things", count="0", bogus="1")
    assert (answer.status, answer.reason) == (400, "Parameter verification failed.")
    assert answer.errors == {
        "name": "property is missing and it is not optional",
        "count": "value must have a minimum value of 1",
        "bogus": "property is not defined in schema and the schema does not allow additional properties",
    }
    assert admin.send("GET", f"/nodes/{NODE}/here", query=b"node=n2").errors == {
        "node": "duplicate parameter (already defined in URI)"
    }


def test_permission_comes_before_parameters(token: Wire) -> None:
    assert token.put("/things", name="100", bogus="1").status == 403


@pytest.mark.parametrize(
    ("verb", "body", "headers", "status", "reason"),
    [
        ("POST", b"x" * 600_000, {}, 501, "for data too large"),
        ("POST", b"", {"x-body-length": "600000"}, 501, "for data too large"),
        ("POST", b"a=1", {"transfer-encoding": "chunked"}, 501, "chunked transfer encoding not supported"),
        ("POST", b"a=1", {"x-transfer-encoding": "chunked"}, 501, "chunked transfer encoding not supported"),
        ("GET", b"a=1", {}, 501, "Unexpected content for method 'GET'"),
        ("DELETE", b"a=1", {}, 501, "Unexpected content for method 'DELETE'"),
        ("POST", b"<a/>", {"content-type": "text/xml"}, 506, "Content-Type 'text/xml' not supported"),
        ("POST", b"{", {"content-type": "application/json"}, 400, None),
        ("POST", b"a=%ff", {}, 400, "parameters must be UTF-8 text"),
    ],
)
def test_bodies_that_no_method_takes(
    admin: Wire, verb: str, body: bytes, headers: dict[str, str], status: int, reason: str | None
) -> None:
    answer = admin.send(verb, "/things", body=body, headers=headers)
    assert answer.status == status
    assert reason is None or answer.reason == reason


# --- answers


def test_envelope_and_headers(admin: Wire) -> None:
    answer = admin.get("/things")
    assert (answer.status, answer.reason, answer.json) == (200, "OK", {"data": [1], "total": 9})
    assert answer.headers["content-type"] == "application/json;charset=UTF-8"
    assert answer.headers["server"] == "pve-api-daemon/3.0"
    assert answer.headers["cache-control"] == "max-age=0"
    assert answer.headers["pragma"] == "no-cache"
    assert answer.headers["expires"] == answer.headers["date"]
    assert "connection" not in answer.headers


def test_failures(admin: Wire) -> None:
    answer = admin.get("/fails")
    assert (answer.status, answer.reason) == (500, "VM 100 not running")
    assert answer.json["data"] is None
    answer = admin.get("/away")
    assert (answer.status, answer.reason, answer.body) == (596, "timed out", b"")
    answer = admin.send("GET", "/fails", prefix="/api2/extjs")
    assert (answer.status, answer.json["success"], answer.json["status"]) == (200, 0, 500)


def test_a_fault_of_ours_shows_a_reference_and_no_detail(admin: Wire) -> None:
    answer = admin.get("/bug")
    assert answer.status == 500
    assert answer.reason.startswith("internal error; see the log of this node for ")
    assert b"secret" not in answer.body


def test_uploads_stream_past_the_limit(admin: Wire) -> None:
    headers = {"csrfpreventiontoken": "", "content-type": "multipart/form-data; boundary=x"}
    answer = admin.send("POST", f"/nodes/{NODE}/upload", body=b"x" * 700_000, headers=headers)
    assert answer.data == 700_000


# --- refusals


def test_refusals_take_their_time(services: Services, make_wire: Any) -> None:
    registry = Registry()
    endpoint("GET", "/me", registry=registry, params=Params, permission=Everyone())(lambda call, p: None)

    def refuse(call: Call, p: Params) -> None:
        raise Unauthenticated("authentication failure")

    endpoint("POST", "/access/ticket", registry=registry, params=Params, permission=World())(refuse)
    wire = make_wire(registry, refusal_seconds=0.3)
    for send in (lambda: wire.get("/me"), lambda: wire.post("/access/ticket")):
        begun = time.monotonic()
        answer = send()
        assert answer.status == 401
        assert time.monotonic() - begun >= 0.3
    assert wire.post("/access/ticket").json["data"] is None


def test_waiting_refusals_are_bounded_for_each_address(services: Services, make_wire: Any) -> None:
    registry = Registry()
    endpoint("GET", "/me", registry=registry, params=Params, permission=Everyone())(lambda call, p: None)
    wire = make_wire(registry, refusal_seconds=0.4)

    async def storm() -> list[Any]:
        return await asyncio.gather(*(wire.exchange("GET", "/me") for _ in range(WAITING_REFUSALS + 20)))

    begun = time.monotonic()
    answers = asyncio.run(storm())
    assert time.monotonic() - begun < WAITING_REFUSALS * 0.4 / 2, "they wait side by side"
    assert {answer.status for answer in answers} == {401}

    async def late() -> tuple[Any, Any]:
        waiting = asyncio.gather(*(wire.exchange("GET", "/me") for _ in range(WAITING_REFUSALS)))
        await asyncio.sleep(0.2)
        refused = await wire.exchange("GET", "/me")
        elsewhere = asyncio.create_task(wire.exchange("GET", "/me", headers={"x-real-ip": "198.51.100.1"}))
        await waiting
        return refused, await elsewhere

    refused, elsewhere = asyncio.run(late())
    assert refused.reason == "too many failed logins from this address"
    assert elsewhere.reason == "No ticket"


# --- the audit log


def test_changes_and_refusals_are_written_down(admin: Wire, wire: Wire, token: Wire, services: Services) -> None:
    admin.get("/me")
    admin.post("/things", name="a note", count="3")
    admin.post("/things", count="0")
    token.put("/things", name="100")
    wire.get("/me")
    wire.post("/access/ticket", username="eve@pve", password="guess")
    wire.send("GET", "/me", headers={"authorization": "PVEAPIToken=eve@pve!t=secret-value"})
    lines = services.audit.read()
    assert [(line["who"], line["action"], line["status"]) for line in lines][:6] == [
        ("eve@pve!t (claimed)", "GET /me", 401),
        ("eve@pve (claimed)", "POST /access/ticket", 401),
        ("-", "GET /me", 401),
        ("admin@pve!robot", "PUT /things", 403),
        ("admin@pve", "POST /things", 400),
        ("admin@pve", "POST /things", 200),
    ]
    assert lines[5]["parameters"] == {"name": "(6 characters)", "count": "3"}
    assert lines[5]["origin"] == "192.0.2.1"
    wire.post("/access/ticket", username="admin@pve", password=ADMIN_PASSWORD)
    assert services.audit.read(limit=1)[0]["who"] == "admin@pve", "a login that succeeded proves the name"
    text = services.paths.audit_log.read_text()
    assert "guess" not in text
    assert "secret-value" not in text
    assert ADMIN_PASSWORD not in text


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://example.org/a.iso", "https://example.org/a.iso"),
        ("https://eve:guess@example.org:8443/a.iso", "https://example.org:8443/a.iso"),
        ("https://example.org/a.iso?X-Signature=guess&x=y@z", "https://example.org/a.iso?…"),
        ("https://a@eve:guess@example.org", "https://example.org"),
        ("eve:guess@example.org", "(21 characters)"),
    ],
)
def test_addresses_are_written_down_without_passwords(admin: Wire, services: Services, url: str, shown: str) -> None:
    admin.post("/fetch", url=url)
    assert services.audit.read(limit=1)[0]["parameters"] == {"url": shown}
