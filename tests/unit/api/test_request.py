# SPDX-License-Identifier: AGPL-3.0-or-later
"""What requests say: paths, formats, bodies, and parameters from all their places."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orrery.api.credentials import Credentials, Kind, find_credentials
from orrery.api.request import BadContentType, Malformed, body_parameters, check_body, form, merge, target
from orrery.errors import NotSupported, OrreryError, ParameterError


def test_paths_are_taken_apart() -> None:
    goal = target("GET", "/api2//json///nodes/n1/")
    assert (goal.format, goal.segments, goal.path) == ("json", ("nodes", "n1"), "/nodes/n1")
    assert target("GET", "/api2/extjs").path == "/"


@pytest.mark.parametrize(
    ("verb", "path", "status", "text"),
    [
        ("PATCH", "/api2/json/x", 501, "method 'PATCH' not available"),
        ("HEAD", "/api2/json/x", 501, "method 'HEAD' not available"),
        ("GET", "/api2", 501, "no such uri"),
        ("GET", "/api2/png/x/y", 501, "no formatter for uri /x/y, format png"),
        ("GET", "/favicon.ico", 500, "no such file '/favicon.ico'"),
    ],
)
def test_paths_that_lead_nowhere(verb: str, path: str, status: int, text: str) -> None:
    with pytest.raises(OrreryError) as refused:
        target(verb, path)
    assert (refused.value.status, refused.value.message) == (status, text)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (b"", {}),
        (b"a=1&b=2;c=3", {"a": "1", "b": "2", "c": "3"}),
        (b"a=1&a=2&a=3", {"a": ["1", "2", "3"]}),
        (b"a=&b", {"a": "", "b": ""}),
        (b"a=b=c&d=e%3Df", {"a": "b", "d": "e=f"}),
        (b"a+b=c+d%2B", {"a b": "c d+"}),
        (b"n=%C3%A4", {"n": "ä"}),
        (b"&&;a=1;", {"a": "1"}),
    ],
)
def test_forms(text: bytes, found: dict[str, object]) -> None:
    assert form(text) == found


def test_forms_must_be_utf8() -> None:
    with pytest.raises(Malformed):
        form(b"a=%ff")


@pytest.mark.parametrize(
    "kind", ["application/x-www-form-urlencoded", "application/x-www-form-urlencoded; charset=UTF-8", ""]
)
def test_bodies_are_forms_unless_said_otherwise(kind: str) -> None:
    assert body_parameters(kind, b"a=1") == {"a": "1"}


@pytest.mark.parametrize("kind", ["application/json", "Application/JSON;charset=utf-8", ""])
def test_json_bodies(kind: str) -> None:
    assert body_parameters(kind, b'{"a": true, "b": [1]}') == {"a": True, "b": [1]}


@pytest.mark.parametrize("body", [b"[1]", b'"x"', b"{", b'{"a": NaN}', b"\xff", b"[" * 5000])
def test_json_that_is_none(body: bytes) -> None:
    with pytest.raises(Malformed) as refused:
        body_parameters("application/json", body)
    assert refused.value.status == 400


def test_other_bodies() -> None:
    with pytest.raises(BadContentType) as refused:
        body_parameters("text/xml", b"<a/>")
    assert refused.value.status == 506
    assert body_parameters("text/xml", b"") == {}


def test_bodies_where_none_belongs() -> None:
    with pytest.raises(NotSupported, match="Unexpected content for method 'GET'"):
        check_body("GET", {"content-length": "3"})
    with pytest.raises(NotSupported, match="Unexpected content for method 'DELETE'"):
        check_body("DELETE", {"content-length": "3"})
    with pytest.raises(NotSupported, match="chunked transfer encoding not supported"):
        check_body("POST", {"transfer-encoding": "chunked"})
    assert check_body("DELETE", {"content-length": "0"}) == 0
    assert check_body("POST", {"content-length": "5", "x-body-length": "700000"}) == 700000


def test_merging() -> None:
    assert merge({"vmid": "100"}, {"a": "q", "_dc": "1"}, {"a": "b", "c": "d"}) == {"vmid": "100", "a": "q", "c": "d"}
    assert merge({"vmid": "100"}, {"vmid": "100"}, {"vmid": 100}) == {"vmid": "100"}
    with pytest.raises(ParameterError) as refused:
        merge({"vmid": "100"}, {"vmid": "101"}, {})
    assert refused.value.errors == {"vmid": "duplicate parameter (already defined in URI)"}


TICKET = "PVE:root@pam:6123ABCD::a+b/c=="


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        ({}, None),
        ({"cookie": "a=b"}, None),
        ({"cookie": f"a=b; PVEAuthCookie={TICKET}"}, Credentials(Kind.TICKET, TICKET)),
        ({"cookie": "PVEAuthCookie=PVE%3Aroot@pam%3A6123ABCD%3A%3Aa%2Bb%2Fc%3D%3D"}, Credentials(Kind.TICKET, TICKET)),
        ({"cookie": f"__Host-OrreryAuth={TICKET}"}, Credentials(Kind.TICKET, TICKET)),
        ({"cookie": f"__Host-OrreryAuth=x; PVEAuthCookie={TICKET}"}, Credentials(Kind.TICKET, TICKET)),
        ({"authorization": f"PVEAuthCookie={TICKET}"}, Credentials(Kind.TICKET, TICKET)),
        ({"authorization": "PVEAPIToken=u@pve!t=uuid"}, Credentials(Kind.TOKEN, "u@pve!t=uuid")),
        ({"authorization": "PVEAPIToken u@pve!t=uuid"}, Credentials(Kind.TOKEN, "u@pve!t=uuid")),
        ({"authorization": "PVEAPITokens=u@pve!t=uuid"}, None),
        ({"authorization": "Basic eDp5"}, None),
        (
            {"authorization": "PVEAPIToken=u@pve!t=x", "cookie": f"PVEAuthCookie={TICKET}"},
            Credentials(Kind.TICKET, TICKET),
        ),
    ],
)
def test_credentials(headers: dict[str, str], found: Credentials | None) -> None:
    assert find_credentials(headers) == found


@given(st.text(), st.text())
def test_any_header_is_survived(cookie: str, authorization: str) -> None:
    find_credentials({"cookie": cookie, "authorization": authorization})


@given(st.binary(max_size=200))
def test_any_form_is_survived(text: bytes) -> None:
    with contextlib.suppress(Malformed):
        assert all(isinstance(value, str | list) for value in form(text).values())
