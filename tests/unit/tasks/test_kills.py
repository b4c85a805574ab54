# SPDX-License-Identifier: AGPL-3.0-or-later
"""Task, daemon or both are killed at every transition that a task journals; then nothing half made may remain."""

import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tests.unit.tasks.dummies import Build, Wait
from tests.unit.tasks.node import ANNA, Daemon, ended, log_of, make_paths, running, settled, wait_until

from orrery.errors import Failure
from orrery.system import process
from orrery.tasks.faultstop import VARIABLE
from orrery.tasks.journal import Journal
from orrery.tasks.runner import Runner
from orrery.tasks.task import TaskRecord, Upid

BUILD = Build(names=("a",))
TRANSITIONS = ("begin", "thing.remove", "made", "commit", "end")
UNDO_TRANSITIONS = ("claim", "undone", "end")
EACH = pytest.mark.parametrize("n", range(1, len(TRANSITIONS) + 1), ids=TRANSITIONS)
COMMITTED = TRANSITIONS.index("commit") + 1


class Stop:
    """The file that says where tasks stop."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.told = file.with_name(f"{file.name}.stopped")

    def at(self, kind: str, n: int) -> None:
        self.told.unlink(missing_ok=True)
        self.file.write_text(f"{kind}:{n}")

    def reached(self) -> dict[str, Any]:
        wait_until(self.told.exists)
        told: dict[str, Any] = json.loads(self.told.read_text())
        wait_until(lambda: b") T " in Path(f"/proc/{told['pid']}/stat").read_bytes())
        return told


@pytest.fixture(scope="module")
def stopped_runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Runner, Stop]]:
    folder = tmp_path_factory.mktemp("node")
    stop = Stop(folder / "stop")
    os.environ[VARIABLE] = str(stop.file)
    try:
        with running(folder / "root") as runner:
            runner.zygote.wait_ready()
            yield runner, stop
    finally:
        del os.environ[VARIABLE]


@pytest.fixture
def target(stopped_runner: tuple[Runner, Stop]) -> Iterator[tuple[Runner, Stop]]:
    runner, stop = stopped_runner
    for path in (runner._paths.lib / "things").glob("*"):
        path.unlink()
    yield runner, stop
    stop.file.unlink(missing_ok=True)


def things(root: Path) -> set[str]:
    folder = root / "lib" / "things"
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


def start_aside(runner: Runner) -> "Future[Upid]":
    return ThreadPoolExecutor(1).submit(runner.start, BUILD, ANNA)


def expect_undone(journal: Journal, upid: Upid, n: int, root: Path) -> None:
    """What must be true of a task that was killed after its n-th transition."""
    task = settled(journal, upid)
    assert task.status == ("OK" if n == len(TRANSITIONS) else "unexpected status")
    assert things(root) == ({"a"} if n >= COMMITTED else set())
    assert journal.locks.holder("guest/100") is None
    assert log_of(journal, upid)[-1] == ("TASK OK" if n == len(TRANSITIONS) else "TASK ERROR: unexpected status")


def test_these_are_all_transitions(target: tuple[Runner, Stop]) -> None:
    runner, stop = target
    stop.at("build", len(TRANSITIONS) + 1)
    assert settled(runner.journal, runner.start(BUILD, ANNA)).status == "OK"
    assert not stop.told.exists()


@EACH
def test_the_task_is_killed(target: tuple[Runner, Stop], n: int) -> None:
    runner, stop = target
    stop.at("build", n)
    heard: list[TaskRecord] = []
    runner.listeners[:] = [heard.append]
    answer = start_aside(runner)
    told = stop.reached()
    assert told["transition"] == TRANSITIONS[n - 1]
    os.kill(told["pid"], signal.SIGKILL)
    upid = Upid.parse(told["upid"])
    if n == 1:
        with pytest.raises(Failure, match="got no worker upid"):
            answer.result(10)
    else:
        assert answer.result(10) == upid
    root = runner._paths.root
    assert root is not None
    expect_undone(runner.journal, upid, n, root)
    if n > 1:
        wait_until(lambda: [task.upid for task in heard] == [upid])


@EACH
def test_the_daemon_is_killed(tmp_path: Path, n: int) -> None:
    stop = Stop(tmp_path / "stop")
    root = tmp_path / "root"
    stop.at("build", n)
    daemon = Daemon(root, {VARIABLE: str(stop.file)})
    daemon.order(BUILD)
    told = stop.reached()
    daemon.kill()
    upid = Upid.parse(told["upid"])
    with running(root) as runner:
        heard: list[TaskRecord] = []
        runner.listeners.append(heard.append)
        assert runner.journal.get(upid).running == (n < len(TRANSITIONS))
        os.kill(told["pid"], signal.SIGCONT)
        task = settled(runner.journal, upid)
        if n == 1:  # nobody got its name: it does nothing
            assert task.status == "nobody waited for the task to start"
            assert things(root) == set()
        else:
            assert task.status == "OK"
            assert things(root) == {"a"}
        if n < len(TRANSITIONS):
            wait_until(lambda: [task.upid for task in heard] == [upid])
        assert runner.journal.locks.holder("guest/100") is None


@EACH
def test_task_and_daemon_are_killed(tmp_path: Path, n: int) -> None:
    stop = Stop(tmp_path / "stop")
    root = tmp_path / "root"
    stop.at("build", n)
    daemon = Daemon(root, {VARIABLE: str(stop.file)})
    daemon.order(BUILD)
    told = stop.reached()
    daemon.kill()
    os.kill(told["pid"], signal.SIGKILL)
    with running(root) as runner:
        expect_undone(runner.journal, Upid.parse(told["upid"]), n, root)


@pytest.mark.parametrize("n", range(1, len(UNDO_TRANSITIONS) + 1), ids=UNDO_TRANSITIONS)
def test_who_undoes_is_killed(target: tuple[Runner, Stop], n: int) -> None:
    runner, stop = target
    stop.at("build", TRANSITIONS.index("made") + 1)
    answer = start_aside(runner)
    first = stop.reached()
    stop.at("build/undo", n)
    os.kill(first["pid"], signal.SIGKILL)
    second = stop.reached()
    assert second["upid"] == first["upid"]
    assert second["transition"] == UNDO_TRANSITIONS[n - 1]
    stop.file.unlink()
    os.kill(second["pid"], signal.SIGKILL)
    root = runner._paths.root
    assert root is not None
    expect_undone(runner.journal, answer.result(10), TRANSITIONS.index("made") + 1, root)


def test_killed_while_it_undoes_its_own_failure(target: tuple[Runner, Stop]) -> None:
    runner, stop = target
    stop.at("build", 4)  # begin, thing.remove, made, fail
    upid = runner.start(Build(names=("a",), ending="fail"), ANNA)
    told = stop.reached()
    assert told["transition"] == "fail"
    os.kill(told["pid"], signal.SIGKILL)
    task = settled(runner.journal, upid)
    assert task.status == "no luck today"
    assert not (runner._paths.lib / "things" / "a").exists()


def test_a_failed_undo_is_tried_again_by_the_next_daemon(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path)
    (tmp_path / "lib" / "stuck-waiting").touch()
    daemon.order(Wait(target="5"))
    upid = daemon.upid()
    paths = make_paths(tmp_path)
    journal = Journal(paths.tasks_db, paths.task_logs)
    wait_until(lambda: "waiting" in things(tmp_path))
    os.kill(upid.pid, signal.SIGKILL)
    task = ended(journal, upid)
    assert task.status == "unexpected status (not undone yet: thing.remove)"
    daemon.kill()
    with running(tmp_path):
        wait_until(lambda: journal.get(upid).attempts > task.attempts)
        (tmp_path / "lib" / "stuck-waiting").unlink()
        assert settled(journal, upid).status == "unexpected status"
    assert things(tmp_path) == set()
    assert journal.locks.holder("guest/5") is None


def test_the_zygote_dies_with_the_daemon_and_tasks_do_not(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path)
    daemon.order(Wait())
    upid = daemon.upid()
    zygote = int(Path(f"/proc/{upid.pid}/stat").read_text().rpartition(")")[2].split()[1])
    identity = process.identity(zygote)
    assert identity is not None
    assert Path(f"/proc/{zygote}/comm").read_text() == "orrery zygote\n"
    daemon.kill()
    assert process.wait(identity, 10)
    paths = make_paths(tmp_path)
    journal = Journal(paths.tasks_db, paths.task_logs)
    assert journal.alive(journal.get(upid))
    with running(tmp_path) as runner:
        runner.cancel(upid)
        assert settled(journal, upid).status == "received interrupt"


def test_a_log_cut_off_by_a_crash_is_completed(tmp_path: Path) -> None:
    with running(tmp_path) as runner:
        upid = runner.start(BUILD, ANNA)
        ended(runner.journal, upid)
        settled(runner.journal, upid)
        path = runner.journal.logs.path(upid)
    path.write_text("made a\nTASK O")
    with running(tmp_path):
        assert path.read_text() == "made a\nTASK O\nTASK OK\n"
