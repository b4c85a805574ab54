# SPDX-License-Identifier: AGPL-3.0-or-later
"""What verbs tell people of tasks and of changes that wait, with a client that answers from a list."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import orjson
import pytest

from orrery.cli import vm
from orrery.cli.client import Target
from orrery.cli.verbs import Session
from orrery.errors import Failure, Forbidden, ParameterError

UPID = "UPID:alpha:00000001:00000002:6B031E01:qmconfig:100:root@pam:"
WARNING = "WARN: net2: bridge 'vmbr9' does not exist; the change waits for the next start"
LOG = [{"n": 1, "t": WARNING}, {"n": 2, "t": "TASK WARNINGS: 1"}]


class Canned:
    """Answers as a node whose tasks have all ended with one status."""

    def __init__(self, status: str, pending: list[dict[str, Any]] | None) -> None:
        self.status = status
        self.pending = pending
        self.sent = b""

    def node(self) -> str:
        return "alpha"

    def call(self, method: str, path: str, parameters: object = None) -> Any:
        if path.endswith("/log"):
            return LOG
        if path.endswith("/pending"):
            if self.pending is None:
                raise Forbidden("Permission check failed")
            return self.pending
        return UPID

    def upload(self, path: str, fields: object, file: Path, name: str, watched: Callable[[BinaryIO], BinaryIO]) -> str:
        with file.open("rb") as stream:
            self.sent = watched(stream).read()
        return UPID

    def wait(self, upid: str, watch: Callable[[dict[str, Any]], None]) -> None:
        watch({"status": "stopped", "exitstatus": self.status})


def session(status: str = "OK", *, json: bool = False, pending: list[dict[str, Any]] | None = None) -> Session:
    made = Session(Target(Path("/nonexistent")), json=json)
    made.__dict__["client"] = Canned(status, pending)
    return made


def change(on: Session, *options: str, delete: str | None = None) -> None:
    vm.set_(on, 100, list(options), delete=delete, revert=None, force=False)


def test_warnings_of_a_task_are_seen(capsys: pytest.CaptureFixture[str]) -> None:
    session("WARNINGS: 1").follow(UPID)
    said = capsys.readouterr()
    assert said.err == f"{WARNING}\n"
    assert said.out == ""


def test_programs_read_of_warnings_in_the_status(capsys: pytest.CaptureFixture[str]) -> None:
    session("WARNINGS: 1", json=True).follow(UPID)
    said = capsys.readouterr()
    assert orjson.loads(said.out) == {"upid": UPID, "status": "WARNINGS: 1"}
    assert said.err == ""


def test_a_change_tells_what_waits(capsys: pytest.CaptureFixture[str]) -> None:
    rows: list[dict[str, Any]] = [
        {"key": "name", "value": "a"},
        {"key": "memory", "value": 1, "pending": 2},
        {"key": "net1", "delete": 1},
    ]
    change(session(pending=rows), "memory=2")
    assert capsys.readouterr().out == "pending until VM 100 is started anew: memory, net1\n"


@pytest.mark.parametrize("rows", [[], [{"key": "name", "value": "a"}], None])
def test_a_change_that_is_made_or_may_not_be_seen_tells_nothing(
    rows: list[dict[str, Any]] | None, capsys: pytest.CaptureFixture[str]
) -> None:
    change(session(pending=rows), "name=a")
    assert capsys.readouterr() == ("", "")


def test_a_change_of_nothing_is_a_mistake() -> None:
    with pytest.raises(Failure, match="nothing to change"):
        change(session(pending=[]))


def test_an_upload_is_read_through_the_bar(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.iso").write_bytes(b"medium")
    on = session(json=True)
    on.upload("/nodes/alpha/storage/local/upload", {"content": "iso"}, tmp_path / "a.iso", "a.iso")
    assert on.__dict__["client"].sent == b"medium"
    assert orjson.loads(capsys.readouterr().out)["status"] == "OK"


def test_the_error_of_a_failed_task_is_told_once(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    on = session()
    log = [{"n": 1, "t": "copying"}, {"n": 2, "t": "TASK ERROR: no space"}]
    fail = Failure("no space")

    def wait(upid: str, watch: object) -> None:
        raise fail

    monkeypatch.setattr(on.client, "wait", wait)
    monkeypatch.setattr(on, "_log", lambda upid: log)
    with pytest.raises(Failure) as caught:
        on.follow(UPID)
    assert caught.value is fail
    assert capsys.readouterr().out == "copying\n"


def test_a_disk_cannot_be_told_to_shrink() -> None:
    with pytest.raises(ParameterError) as caught:
        vm.resize(session(), 100, "virtio0", "-1G")
    assert "can only grow" in caught.value.errors["SIZE"]
