# SPDX-License-Identifier: AGPL-3.0-or-later
"""The audit log: complete, without secrets, whole lines, whatever happens."""

import json
import os
import stat
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from orrery.access.audit import REDACTED, AuditLog, redact


@pytest.fixture
def audit(tmp_path):
    return AuditLog(tmp_path / "log" / "audit.log", clock=lambda: 1_800_000_000.1234)


def record(audit, number, **more):
    audit.record(who="anna@pve", origin="192.0.2.7", action=f"POST /x/{number}", **more)


def test_a_line_says_who_from_where_what_and_how_it_ended(audit):
    audit.record(
        who="anna@pve!t",
        origin="192.0.2.7",
        action="PUT /access/acl",
        parameters={"path": "/vms/100", "delete": 1},
        result="Permission check failed",
        status=403,
    )
    assert audit.read() == [
        {
            "time": 1_800_000_000.123,
            "who": "anna@pve!t",
            "origin": "192.0.2.7",
            "action": "PUT /access/acl",
            "result": "Permission check failed",
            "status": 403,
            "parameters": {"path": "/vms/100", "delete": 1},
            "pid": os.getpid(),
        }
    ]
    assert stat.S_IMODE(audit.path.stat().st_mode) == 0o600


SECRETS = [
    "password",
    "Password",
    "confirmation-password",
    "new_password",
    "cipassword",
    "client-key",
    "certkey",
    "otp",
    "tfa-challenge",
    "ticket",
    "vncticket",
    "PVEAuthCookie",
    "token-value",
    "secret",
    "input-data",
    "product-key",
    "private-key",
]


@pytest.mark.parametrize("name", SECRETS)
def test_no_secret_is_written(audit, name):
    record(audit, 1, parameters={name: "hunter2", "nested": {name: ["hunter2"]}})
    record(audit, 2, parameters=[f"{name}=hunter2", name])
    assert b"hunter2" not in audit.path.read_bytes()
    assert REDACTED.encode() in audit.path.read_bytes()


def test_what_is_no_secret_is_shown():
    shown = {
        "userid": "a@pve",
        "keyboard": "it",
        "tokenid": "t",
        "sshkeys": "ssh-ed25519 AAAA",
        "content": "iso,images",
    }
    assert redact(shown) == shown
    assert redact(["vmid=100", "content=iso", "name"]) == ["vmid=100", "content=iso", "name"]
    assert redact({"content": "root:hash"}) == {"content": REDACTED}
    assert redact(["content=top secret"]) == ["content=" + REDACTED]


@given(text=st.text(max_size=200), params=st.dictionaries(st.text(max_size=5), st.text(max_size=20), max_size=4))
def test_nothing_breaks_the_form_of_a_line(tmp_path_factory, text, params):
    audit = AuditLog(tmp_path_factory.mktemp("audit") / "audit.log")
    audit.record(who=text, origin=text, action=text, result=text, parameters=params)
    content = audit.path.read_bytes()
    assert content.count(b"\n") == 1
    assert all(0x20 <= byte < 0x7F for byte in content[:-1])
    assert audit.read()[0]["who"] == text


def test_huge_parameters_are_cut(audit):
    record(audit, 1, parameters={"a": "x" * 10**6, "list": ["y" * 5000] * 500, "deep": {"a": {"b": {"c": {"d": {}}}}}})
    assert audit.path.stat().st_size < 300_000


def test_reading_goes_backwards_in_pages(audit):
    for number in range(25):
        record(audit, number)
    assert [line["action"] for line in audit.read(0, 3)] == ["POST /x/24", "POST /x/23", "POST /x/22"]
    assert [line["action"] for line in audit.read(23, 10)] == ["POST /x/1", "POST /x/0"]
    assert audit.read(25, 10) == []
    assert audit.read(0, 0) == []


def test_reading_one_user_s_lines(audit):
    for number in range(6):
        audit.record(who=f"u{number % 2}@pve", origin="local", action=f"POST /x/{number}")
    assert [line["action"] for line in audit.read(1, 5, who="u1@pve")] == ["POST /x/3", "POST /x/1"]
    assert audit.read(who="u9@pve") == []


def test_long_files_are_read_across_blocks(audit, monkeypatch):
    monkeypatch.setattr("orrery.access.audit.BLOCK", 61)
    for number in range(40):
        record(audit, number)
    assert [line["action"] for line in audit.read(0, 100)] == [f"POST /x/{number}" for number in reversed(range(40))]


def test_it_rotates_by_size_and_is_read_over_the_seam(tmp_path):
    audit = AuditLog(tmp_path / "audit.log", size_limit=1000, kept_files=3)
    for number in range(60):
        record(audit, number)
    files = sorted(path.name for path in tmp_path.glob("audit.log*"))
    assert files == ["audit.log", "audit.log.1", "audit.log.2", "audit.log.3", "audit.log.lock"]
    lines = [line["action"] for line in audit.read(0, 1000)]
    assert lines == [f"POST /x/{number}" for number in range(59, 59 - len(lines), -1)]
    assert len(lines) > 18
    assert all((tmp_path / name).stat().st_size < 1300 for name in files)


def test_there_is_nothing_to_read_at_first(audit):
    assert audit.read() == []


def test_a_damaged_line_is_shown_as_damaged(audit):
    record(audit, 1)
    with audit.path.open("ab") as file:
        file.write(b'{"half": \xff\n7\n')
    record(audit, 2)
    lines = audit.read()
    assert [line["action"] for line in lines] == ["POST /x/2", "(damaged line)", "(damaged line)", "POST /x/1"]
    assert lines[2]["result"] == '{"half": \\xff'
    assert all(set(line) == set(lines[0]) for line in lines)


def test_a_log_that_cannot_be_written_is_loud_and_does_not_stop_the_node(tmp_path):
    (tmp_path / "file").write_text("")
    audit = AuditLog(tmp_path / "file" / "audit.log")
    with capture_logs() as logs:
        record(audit, 1, parameters={"vmid": 100, "password": "hunter2"})
    assert logs[0]["log_level"] == "error"
    assert "AUDIT LINE LOST" in logs[0]["event"]
    assert json.loads(logs[0]["line"])["parameters"] == {"vmid": 100, "password": REDACTED}


def test_a_symbolic_link_is_not_followed(tmp_path):
    (tmp_path / "target").write_text("")
    (tmp_path / "audit.log").symlink_to(tmp_path / "target")
    with capture_logs() as logs:
        record(AuditLog(tmp_path / "audit.log"), 1)
    assert len(logs) == 1
    assert (tmp_path / "target").read_text() == ""


def test_threads_and_processes_write_whole_lines(tmp_path):
    def write():
        audit = AuditLog(tmp_path / "audit.log", size_limit=20_000, kept_files=50)
        for number in range(60):
            record(audit, number, parameters={"text": "x" * 200})

    children = []
    for _ in range(2):
        pid = os.fork()
        if pid == 0:
            try:
                write()
            finally:
                os._exit(0)
        children.append(pid)
    threads = [threading.Thread(target=write) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for pid in children:
        os.waitpid(pid, 0)
    lines = AuditLog(tmp_path / "audit.log", kept_files=50).read(0, 1000)
    assert len(lines) == 240
    assert not [line for line in lines if line["action"] == "(damaged line)"]
