# SPDX-License-Identifier: AGPL-3.0-or-later
import contextlib
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orrery.errors import Failure
from orrery.tasks.journal import Journal
from orrery.tasks.locks import own_identity
from orrery.tasks.progress import ProgressFile, read_progress, sweep
from orrery.tasks.task import Upid
from orrery.tasks.tasklog import LogLine, TaskLogs, file_name

UPID = Upid("n", 1, 2, 0x12345678, "x", "", "a@b")


@pytest.fixture
def logs(tmp_path: Path) -> TaskLogs:
    return TaskLogs(tmp_path)


def write(logs: TaskLogs, *lines: str) -> None:
    with contextlib.closing(logs.writer(UPID)) as writer:
        for line in lines:
            writer.line(line)


def texts(logs: TaskLogs, start: int = 0, limit: int = 0, last: str | None = None) -> tuple[list[tuple[int, str]], int]:
    lines, total = logs.page(UPID, start, limit, last)
    return [(line.n, line.t) for line in lines], total


def test_where_a_log_lies(logs: TaskLogs) -> None:
    assert logs.path(UPID) == logs.folder / "78" / str(UPID)
    long = Upid("n", 1, 2, 3, "x", "y" * 96, "z" * 200)
    assert len(file_name(long)) < 100
    assert file_name(long) != file_name(Upid("n", 1, 2, 3, "x", "y" * 95, "z" * 200))


def test_pages(logs: TaskLogs) -> None:
    write(logs, *(f"line {n}" for n in range(1, 8)))
    assert texts(logs, 0, 3) == ([(1, "line 1"), (2, "line 2"), (3, "line 3")], 7)
    assert texts(logs, 5, 3) == ([(6, "line 6"), (7, "line 7")], 7)
    assert texts(logs, 5, 3, "TASK OK") == ([(6, "line 6"), (7, "line 7"), (8, "TASK OK")], 8)
    assert texts(logs, 5, 2, "TASK OK") == ([(6, "line 6"), (7, "line 7")], 8)
    assert texts(logs, 50, 3) == ([], 7)


def test_an_empty_log_says_so(logs: TaskLogs) -> None:
    assert texts(logs) == ([(1, "no content")], 1)
    write(logs)
    assert texts(logs) == ([(1, "no content")], 1)
    assert texts(logs, last="TASK OK") == ([(1, "TASK OK")], 1)


def test_the_last_line_is_there_once(logs: TaskLogs) -> None:
    write(logs, "a")
    logs.finish(UPID, "TASK OK")
    logs.finish(UPID, "TASK OK")
    assert texts(logs, last="TASK OK") == ([(1, "a"), (2, "TASK OK")], 2)
    assert b"".join(logs.stream(UPID, "TASK OK")) == b"a\nTASK OK\n"


def test_lines_cut_off_are_ended_before_others_follow(logs: TaskLogs) -> None:
    write(logs, "a")
    with logs.path(UPID).open("a") as file:
        file.write("cut of")
    assert b"".join(logs.stream(UPID, "TASK OK")) == b"a\ncut of\nTASK OK\n"
    write(logs, "b")
    assert texts(logs)[0] == [(1, "a"), (2, "cut of"), (3, "b")]


@given(st.text())
def test_a_log_has_lines_and_no_control_characters(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    logs = TaskLogs(tmp_path_factory.mktemp("logs"))
    write(logs, text)
    lines, total = logs.page(UPID, 0, 0, None)
    assert total == len(lines) >= 1
    assert not any(ord(sign) < 32 and sign != "\t" for line in lines for sign in line.t)


def test_a_log_that_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "78").write_text("no folder")
    with pytest.raises(Failure, match="unable to open the task log"):
        TaskLogs(tmp_path).writer(UPID)
    TaskLogs(tmp_path).finish(UPID, "TASK OK")


def test_following(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "tasks.db", tmp_path)
    me = own_identity()
    upid = Upid("n", me.pid, me.start, 1, "x", "", "a@b")
    journal.begin(upid, {})
    got: list[LogLine] = []
    reader = threading.Thread(target=lambda: got.extend(journal.follow_log(upid)))
    reader.start()
    with contextlib.closing(journal.logs.writer(upid)) as writer:
        for n in range(3):
            writer.line(f"line {n}")
            time.sleep(0.1)
    journal.succeed(upid, "OK")
    reader.join(10)
    assert got == [LogLine(1, "line 0"), LogLine(2, "line 1"), LogLine(3, "line 2"), LogLine(4, "TASK OK")]


def test_progress_is_throttled_and_never_read_by_half(tmp_path: Path) -> None:
    assert read_progress(tmp_path, UPID) is None
    file = ProgressFile(tmp_path, UPID)
    file.tell(1, 10, "bytes", "copy")
    file.tell(2, 10, "bytes", "copy")
    first = read_progress(tmp_path, UPID)
    assert first is not None
    assert (first.done, first.total, first.unit, first.step) == (1, 10, "bytes", "copy")
    file.tell(10, 10, "bytes", "copy")
    second = read_progress(tmp_path, UPID)
    assert second is not None
    assert (second.done, second.since) == (10, first.since)
    file.tell(0, 5, "bytes", "check")
    third = read_progress(tmp_path, UPID)
    assert third is not None
    assert (third.step, third.since > first.since) == ("check", True)
    stop = threading.Event()

    def tell() -> None:
        for n in range(500):
            ProgressFile(tmp_path, UPID).tell(n, 500, "bytes", "x" * (n % 50))
        stop.set()

    writer = threading.Thread(target=tell)
    writer.start()
    while not stop.is_set():
        assert read_progress(tmp_path, UPID) is not None
    writer.join()
    sweep(tmp_path, {file_name(UPID)})
    assert read_progress(tmp_path, UPID) is not None
    sweep(tmp_path, set())
    assert list(tmp_path.iterdir()) == []
