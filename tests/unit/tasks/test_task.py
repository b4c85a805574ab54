# SPDX-License-Identifier: AGPL-3.0-or-later
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orrery.errors import ParameterError
from orrery.model.identity import Identity
from orrery.tasks.task import (
    TaskRecord,
    TaskState,
    Upid,
    error_status,
    last_line,
    status_type,
    subject_id,
    warnings_status,
)

PART = st.text(
    st.characters(blacklist_categories=("Cc", "Cs", "Zs", "Zl", "Zp"), blacklist_characters=":/"), min_size=1
)
UPIDS = st.builds(
    Upid,
    node=st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9-]{0,10}[A-Za-z0-9])?", fullmatch=True),
    pid=st.integers(0, (1 << 32) - 1),
    pstart=st.integers(0, (1 << 36) - 1),
    starttime=st.integers(0, (1 << 32) - 1),
    kind=PART,
    id=PART | st.just(""),
    user=PART,
)


@given(UPIDS)
def test_a_upid_comes_back_from_its_text(upid: Upid) -> None:
    assert Upid.parse(str(upid)) == upid


def test_the_form_of_a_upid() -> None:
    upid = Upid("pve-1", 0x1A2B, 0x3C4D5E6F7, 0x65000000, "qmstart", "100", "root@pam!ci")
    assert str(upid) == "UPID:pve-1:00001A2B:3C4D5E6F7:65000000:qmstart:100:root@pam!ci:"
    assert Upid.parse(str(upid).lower().replace("upid", "UPID")).pid == 0x1A2B
    assert str(Upid("n", 1, 2, 3, "x", "", "a@b")) == "UPID:n:00000001:00000002:00000003:x::a@b:"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "UPID",
        "UPID:n:00000001:00000002:00000003:x::a@b",
        "UPID:n:00000001:00000002:00000003:x::a@b:\n",
        "UPID:n:00000001:00000002:00000003:x::a@b::",
        "UPID:n:1:00000002:00000003:x::a@b:",
        "UPID:n:00000001:0000000002:00000003:x::a@b:",
        "UPID:n:00000001:00000002:00000003::100:a@b:",
        "UPID:n:00000001:00000002:00000003:x:../../etc:a@b:",
        "UPID:-n:00000001:00000002:00000003:x::a@b:",
        "UPID:n:00000001:00000002:00000003:x:a b:a@b:",
        "UPID:n:0000000G:00000002:00000003:x::a@b:",
    ],
)
def test_what_is_no_upid(text: str) -> None:
    with pytest.raises(ParameterError) as caught:
        Upid.parse(text)
    assert set(caught.value.errors) == {"upid"}


@given(st.text())
def test_anything_can_be_the_subject_of_a_task(subject: str) -> None:
    upid = Upid("n", 1, 2, 3, "x", subject_id(subject), "a@b")
    assert Upid.parse(str(upid)) == upid


@given(st.text())
def test_an_error_is_one_line_and_never_looks_like_success(message: str) -> None:
    status = error_status(message)
    assert status
    assert status.isprintable() or not any(ord(sign) < 32 for sign in status)
    assert status_type(status) in ("error", "unknown")
    assert last_line(status) == f"TASK ERROR: {status}"


def test_the_words_of_an_end() -> None:
    assert [warnings_status(0), warnings_status(3)] == ["OK", "WARNINGS: 3"]
    assert [last_line("OK"), last_line("WARNINGS: 3")] == ["TASK OK", "TASK WARNINGS: 3"]
    assert last_line("unexpected status") == "TASK ERROR: unexpected status"
    assert error_status("OK") == "error: OK"
    assert error_status("WARNINGS: 1") == "error: WARNINGS: 1"
    assert error_status(" one\n two\t\x1b[0m\x9b1m") == "one two [0m 1m"
    assert error_status("") == "unknown error"
    assert [status_type(text) for text in ("OK", "WARNINGS: 1", "unexpected status", "x")] == [
        *("ok", "warning", "unknown", "error"),
    ]
    assert status_type("unexpected status (not undone: a)") == "unknown"
    assert status_type("unexpected status 502 from server") == "error"


def a_record(user: str, status: str | None) -> TaskRecord:
    return TaskRecord(
        upid=Upid("n", 10, 20, 30, "qmstart", "100", user),
        state=TaskState.RUNNING if status is None else TaskState.ENDED,
        operation="{}",
        boot="b",
        worker_pid=10,
        worker_start=20,
        cancelled=False,
        committed=False,
        error=None,
        status=status,
        endtime=None if status is None else 31,
        attempts=0,
        unfinished=0,
    )


def test_replies() -> None:
    upid = "UPID:n:0000000A:00000014:0000001E:qmstart:100:a@pve!ci:"
    common = {"upid": upid, "node": "n", "pid": 10, "pstart": 20, "starttime": 30, "type": "qmstart", "id": "100"}
    user = {"user": "a@pve", "tokenid": "ci"}
    assert a_record("a@pve!ci", None).status_reply() == common | user | {"status": "running"}
    assert a_record("a@pve!ci", "OK").status_reply() == common | user | {"status": "stopped", "exitstatus": "OK"}
    assert a_record("a@pve!ci", None).list_reply() == common | user
    assert a_record("a@pve!ci", "OK").list_reply() == common | user | {"endtime": 31, "status": "OK"}
    assert "tokenid" not in a_record("a@pve", "OK").list_reply()


@pytest.mark.parametrize(
    ("user", "identity", "expected"),
    [
        ("anna@pve", "anna@pve", True),
        ("anna@pve!ci", "anna@pve", True),
        ("anna@pve!ci", "anna@pve!ci", True),
        ("anna@pve", "anna@pve!ci", False),
        ("anna@pve!other", "anna@pve!ci", False),
        ("anna@pve!x@ldap", "anna@pve", False),  # a user of another realm whose name looks like a token
        ("bert@pve", "anna@pve", False),
    ],
)
def test_whose_task_it_is(user: str, identity: str, expected: bool) -> None:
    upid = Upid("n1", 1, 1, 1, "qmstart", "100", user)
    assert upid.belongs_to(Identity.parse(identity)) is expected
