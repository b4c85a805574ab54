# SPDX-License-Identifier: AGPL-3.0-or-later
"""Answers: envelopes, reason phrases, numbers for booleans."""

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orrery.api.reply import Result, encode, fail, first_line, refuse, succeed, unexpected
from orrery.errors import Failure, Forbidden, NodeUnreachable, ParameterError


def test_success() -> None:
    assert succeed(None, "json").body == b'{"data":null}'
    assert succeed({"on": True, "list": [False, "true"]}, "json").body == b'{"data":{"on":1,"list":[0,"true"]}}'
    assert orjson.loads(succeed(Result([], beside={"total": 3}), "json").body) == {"data": [], "total": 3}
    assert orjson.loads(succeed(7, "extjs").body) == {"data": 7, "success": 1}
    assert succeed(Result(None, headers={"set-cookie": "a=b"}), "json").headers == (("set-cookie", "a=b"),)


def test_errors() -> None:
    answer = fail(Failure("VM 100 not running\nmore"), "json")
    assert (answer.status, answer.reason) == (500, "VM 100 not running")
    assert orjson.loads(answer.body) == {"data": None, "message": "VM 100 not running\nmore\n"}
    answer = fail(ParameterError({"a": "b"}), "json")
    assert (answer.status, answer.reason) == (400, "Parameter verification failed.")
    assert orjson.loads(answer.body)["errors"] == {"a": "b"}
    answer = fail(Forbidden("Permission check failed"), "extjs")
    assert (answer.status, orjson.loads(answer.body)["status"], orjson.loads(answer.body)["success"]) == (200, 403, 0)


def test_failures_of_forwarding_have_no_body() -> None:
    answer = fail(NodeUnreachable("No route to host"), "json")
    assert (answer.status, answer.reason, answer.body, answer.content_type) == (595, "No route to host", b"", None)


def test_strangers_get_no_body() -> None:
    answer = refuse(401, "No ticket")
    assert (answer.status, answer.reason, answer.body, answer.content_type) == (401, "No ticket", b"", None)


def test_faults_of_ours_name_only_a_reference() -> None:
    answer = unexpected("1a2b", "json")
    assert answer.status == 500
    assert answer.reason == "internal error; see the log of this node for 1a2b"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a\r\nSet-Cookie: x=y", "a"),
        ("\n\n b \x00\x1bc", "b   c"),
        ("Gäste", "Gäste"),
        ("日本", "??"),
        ("", ""),
        ("x" * 1000, "x" * 500),
    ],
)
def test_reason_phrases_are_one_clean_line(text: str, line: str) -> None:
    assert first_line(text) == line


@given(st.text())
def test_no_text_breaks_the_status_line(text: str) -> None:
    line = first_line(text).encode("latin-1")
    assert not set(line) & (set(range(32)) | {127})


def test_encoding_of_what_json_does_not_know() -> None:
    assert encode({"a": {3, 1}, 5: "x"}) == b'{"a":[1,3],"5":"x"}'
