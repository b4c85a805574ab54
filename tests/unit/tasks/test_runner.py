# SPDX-License-Identifier: AGPL-3.0-or-later
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.unit.tasks.dummies import Build, Die, Stamp, Wait
from tests.unit.tasks.node import ANNA, ended, log_of, running, settled, wait_until

from orrery.errors import Failure, Locked, ParameterError
from orrery.model.identity import Identity
from orrery.system import process
from orrery.tasks.runner import Runner
from orrery.tasks.task import TaskRecord, Upid


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    with running(tmp_path_factory.mktemp("node")) as runner:
        runner.zygote.wait_ready()
        yield runner


@pytest.fixture
def runner(shared: Runner) -> Iterator[Runner]:
    """One zygote for all tests of this file, each beginning with an empty workshop."""
    lib = shared._paths.lib
    for path in [*lib.glob("things/*"), *lib.glob("stuck-*"), *lib.glob("bug-*"), *lib.glob("no*s*")]:
        path.unlink()
    yield shared
    shared.listeners.clear()
    wait_until(lambda: not shared.journal.open_tasks())


def things(runner: Runner) -> set[str]:
    folder = runner._paths.lib / "things"
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


def notes(runner: Runner) -> list[str]:
    path = runner._paths.lib / "notes"
    return path.read_text().split("\n")[:-1] if path.exists() else []


def test_success(runner: Runner) -> None:
    upid = runner.start(Build(), ANNA)
    task = runner.wait(upid, 10)
    assert (task.status, task.committed, task.unfinished) == ("OK", True, 0)
    assert (upid.node, upid.kind, upid.id, upid.user) == ("n1", "build", "100", "anna@pve")
    assert things(runner) == {"a", "b"}
    assert log_of(runner.journal, upid) == ["made a", "made b", "TASK OK"]
    assert runner.journal.locks.holder("guest/100") is None


def test_success_without_commit_keeps_everything(runner: Runner) -> None:
    task = runner.wait(runner.start(Build(commit=False), ANNA), 10)
    assert (task.status, task.unfinished) == ("OK", 0)
    assert things(runner) == {"a", "b"}


def test_failure_is_undone_backwards(runner: Runner) -> None:
    upid = runner.start(Build(names=("a", "b", "c"), ending="fail"), ANNA)
    task = runner.wait(upid, 10)
    assert task.status == "no luck today"
    assert things(runner) == set()
    assert notes(runner) == ["removed c", "removed b", "removed a"]
    assert log_of(runner.journal, upid)[-1] == "TASK ERROR: no luck today"
    assert {state for _, _, state in runner.journal.transitions(upid)} == {"noted", "undone"}


def test_failing_check(runner: Runner) -> None:
    upid = runner.start(Build(ending="check"), ANNA)
    assert ended(runner.journal, upid).status == "it is impossible now"
    assert log_of(runner.journal, upid) == ["TASK ERROR: it is impossible now"]


def test_a_mistake_in_the_program_is_told_to_the_daemons_log_only(runner: Runner) -> None:
    upid = runner.start(Build(ending="bug"), ANNA)
    assert ended(runner.journal, upid).status == "internal error (KeyError), see the log of the node"
    assert "secret" not in "\n".join(log_of(runner.journal, upid))
    daemon = runner._paths.daemon_log.read_text()
    assert "the secret of the program" in daemon
    assert str(upid) in daemon


def test_warnings(runner: Runner) -> None:
    upid = runner.start(Build(ending="warn"), ANNA)
    assert ended(runner.journal, upid).status == "WARNINGS: 2"
    assert log_of(runner.journal, upid)[-3:] == ["WARN: mind the step", "WARN: and the next one", "TASK WARNINGS: 2"]


def test_a_kept_record_is_not_undone(runner: Runner) -> None:
    upid = runner.start(Build(names=("a",), ending="kept"), ANNA)
    assert settled(runner.journal, upid).status == "only one was kept"
    states = [state for _, _, state in runner.journal.transitions(upid)]
    assert states == ["undone", "noted", "kept"]


def test_failure_after_commit_undoes_nothing(runner: Runner) -> None:
    upid = runner.start(Build(ending="late failure"), ANNA)
    assert settled(runner.journal, upid).status == "after the point of no return"
    assert things(runner) == {"a", "b"}


def test_what_a_library_prints_goes_to_the_log(runner: Runner) -> None:
    upid = runner.start(Stamp(), ANNA)
    assert upid.id == "local_iso_n_0"
    settled(runner.journal, upid)
    assert log_of(runner.journal, upid) == ["printed by a library", "TASK OK"]


def test_the_task_has_a_process_and_a_title_of_its_own(runner: Runner) -> None:
    upid = runner.start(Wait(), ANNA)
    wait_until(lambda: "waiting" in things(runner))
    assert os.getsid(upid.pid) == upid.pid
    assert Path(f"/proc/{upid.pid}/comm").read_text() == "wait\n"
    assert str(upid) in Path(f"/proc/{upid.pid}/cmdline").read_text()
    opened = {os.readlink(path) for path in Path(f"/proc/{upid.pid}/fd").iterdir()}  # noqa: PTH115
    known = ("/dev/null", str(runner._paths.root), "socket:")
    assert all(target.startswith(known) for target in opened), opened
    (runner._paths.lib / "things" / "go").touch()
    assert settled(runner.journal, upid).status == "OK"


def test_waiting_for_a_task_has_a_limit(runner: Runner) -> None:
    upid = runner.start(Wait(), ANNA)
    begin = time.monotonic()
    assert runner.wait(upid, 0.1).running
    assert time.monotonic() - begin < 2
    runner.cancel(upid)
    assert not runner.wait(upid, 10).running


def test_cancel(runner: Runner) -> None:
    upid = runner.start(Wait(), ANNA)
    wait_until(lambda: runner.progress(upid) is not None)
    told = runner.progress(upid)
    assert told is not None
    assert (told.unit, told.step, told.total) == ("turns", "waiting", 1 << 20)
    runner.cancel(upid)
    runner.cancel(upid)
    task = runner.wait(upid, 10)
    assert task.status == "received interrupt"
    assert things(runner) == set()
    assert log_of(runner.journal, upid)[-1] == "TASK ERROR: received interrupt"
    assert runner.progress(upid) is None
    runner.cancel(upid)


def test_cancel_is_refused_after_commit(runner: Runner) -> None:
    upid = runner.start(Wait(committed=True), ANNA)
    wait_until(lambda: runner.journal.get(upid).committed)
    with pytest.raises(Failure, match="point of no return"):
        runner.cancel(upid)
    (runner._paths.lib / "things" / "go").touch()
    assert settled(runner.journal, upid).status == "OK"


def test_an_interrupt_by_hand_stops_the_task_too(runner: Runner) -> None:
    upid = runner.start(Wait(), ANNA)
    os.kill(upid.pid, signal.SIGTERM)
    assert settled(runner.journal, upid).status == "received interrupt"


def test_cancel_of_a_deaf_task_is_noticed_at_its_end(runner: Runner) -> None:
    upid = runner.start(Wait(deaf=True, seconds=0.5), ANNA)
    wait_until(lambda: "waiting" in things(runner))
    runner.cancel(upid)
    assert settled(runner.journal, upid).status == "received interrupt"
    assert things(runner) == set()


def test_cancel_while_waiting_for_a_lock(runner: Runner) -> None:
    with runner.journal.locked("guest/100"):
        upid = runner.start(Build(), ANNA)
        wait_until(lambda: len(log_of(runner.journal, upid)) == 1)
        runner.cancel(upid)
        assert settled(runner.journal, upid).status == "received interrupt"
    assert runner.journal.locks.holder("guest/100") is None


def test_cancel_of_an_unknown_task(runner: Runner) -> None:
    with pytest.raises(ParameterError) as caught:
        runner.cancel(Upid("n1", 1, 1, 1, "x", "", "a@pve"))
    assert caught.value.errors == {"upid": "no such task"}


def test_a_killed_task_is_undone(runner: Runner) -> None:
    heard: list[TaskRecord] = []
    runner.listeners.append(heard.append)
    upid = runner.start(Wait(target="7"), ANNA)
    wait_until(lambda: "waiting" in things(runner))
    os.kill(upid.pid, signal.SIGKILL)
    task = settled(runner.journal, upid)
    assert task.status == "unexpected status"
    assert things(runner) == set()
    assert runner.journal.locks.holder("guest/7") is None
    wait_until(lambda: bool(heard))
    assert [task.upid for task in heard] == [upid]
    assert "killed by signal 9" in log_of(runner.journal, upid)[0]
    assert log_of(runner.journal, upid)[-1] == "TASK ERROR: unexpected status"


def test_a_task_that_dies_with_nothing_to_undo(runner: Runner) -> None:
    upid = runner.start(Die(), ANNA)
    task = runner.wait(upid, 10)
    assert task.status == "unexpected status"
    assert log_of(runner.journal, upid) == ["TASK ERROR: unexpected status"]


def test_listeners_hear_each_end_once(runner: Runner) -> None:
    heard: list[TaskRecord] = []

    def deaf(task: TaskRecord) -> None:
        raise RuntimeError("a listener's own trouble")

    runner.listeners += [deaf, heard.append]
    upids = {str(runner.start(Stamp(number), ANNA)) for number in range(10)}
    wait_until(lambda: len(heard) >= 10)
    time.sleep(0.1)
    assert len(heard) == 10
    assert {str(task.upid) for task in heard} == upids


def test_other_records_are_undone_when_one_cannot_and_it_is_tried_again(runner: Runner) -> None:
    (runner._paths.lib / "stuck-b").touch()
    upid = runner.start(Build(names=("a", "b", "c"), ending="fail"), ANNA)
    task = ended(runner.journal, upid)
    assert task.status == "no luck today (not undone yet: thing.remove)"
    assert things(runner) == {"b"}
    with pytest.raises(Locked, match=r"can't lock file 'guest/100' - got timeout.*held by task UPID:n1:"):
        runner.journal.locks.acquire(["guest/100"], "UPID:other", wait=0.05)
    (runner._paths.lib / "stuck-b").unlink()
    assert settled(runner.journal, upid).status == "no luck today"
    assert things(runner) == set()
    assert runner.journal.locks.holder("guest/100") is None
    assert log_of(runner.journal, upid)[-1] == "TASK ERROR: no luck today"


def test_undoing_is_given_up_after_five_times(runner: Runner) -> None:
    (runner._paths.lib / "bug-b").touch()
    upid = runner.start(Build(ending="fail"), ANNA)
    task = settled(runner.journal, upid)
    assert task.status == "no luck today (not undone: thing.remove)"
    assert task.attempts == 5
    log = log_of(runner.journal, upid)
    assert "could not undo thing.remove: internal error (ValueError), see the log of the node" in log
    assert "not undone: thing.remove; giving up, please clean up by hand" in log
    assert runner.journal.locks.holder("guest/100") is None
    assert ("thing.remove", {"name": "b"}, "abandoned") in runner.journal.transitions(upid)


def test_without_a_context_undoing_comes_later(runner: Runner) -> None:
    upid = runner.start(Wait(), ANNA)
    wait_until(lambda: "waiting" in things(runner))
    (runner._paths.lib / "no-workshop").touch()
    os.kill(upid.pid, signal.SIGKILL)
    assert "not undone yet" in str(ended(runner.journal, upid).status)
    (runner._paths.lib / "no-workshop").unlink()
    assert settled(runner.journal, upid).status == "unexpected status"
    assert things(runner) == set()


def test_tasks_of_one_thing_run_one_after_another(runner: Runner) -> None:
    first = runner.start(Wait(target="9", seconds=0.3), ANNA)
    others = [runner.start(Build(target="9"), ANNA) for _ in range(3)]
    ends = [settled(runner.journal, upid) for upid in [first, *others]]
    assert [task.status for task in ends] == ["OK"] * 4
    assert log_of(runner.journal, others[0])[0] == "waiting for somebody else to finish with the same thing"


def test_a_task_gives_up_waiting_for_its_lock(runner: Runner) -> None:
    with runner.journal.locked("guest/100"):
        upid = runner.start(Build(), ANNA, lock_wait=0.1)
        status = str(settled(runner.journal, upid).status)
    assert status.startswith("can't lock file 'guest/100' - got timeout")
    assert status.endswith(f"held by a request of process {os.getpid()}")
    assert things(runner) == set()


def test_secrets_are_not_journalled(runner: Runner) -> None:
    upid = runner.start(Build(secret="hunter2"), ANNA)
    assert "hunter2" not in runner.journal.get(upid).operation
    assert '"target": "100"' in runner.journal.get(upid).operation
    settled(runner.journal, upid)


def test_tokens_start_tasks(runner: Runner) -> None:
    upid = runner.start(Stamp(), Identity.parse("anna@pve!ci"))
    assert upid.user == "anna@pve!ci"
    reply = settled(runner.journal, upid).status_reply()
    assert (reply["user"], reply["tokenid"], reply["exitstatus"]) == ("anna@pve", "ci", "OK")


def test_a_dead_zygote_is_replaced_and_its_tasks_are_still_watched(runner: Runner) -> None:
    heard: list[TaskRecord] = []
    runner.listeners.append(heard.append)
    survivor = runner.start(Wait(target="1"), ANNA)
    wait_until(lambda: "waiting" in things(runner))
    old = runner.zygote.process
    assert old is not None
    os.kill(old.pid, signal.SIGKILL)
    upid = runner.start(Stamp(5), ANNA)
    assert settled(runner.journal, upid).status == "OK"
    assert runner.zygote.process != old
    assert process.alive(runner.journal.get(survivor).worker)
    os.kill(survivor.pid, signal.SIGKILL)
    assert settled(runner.journal, survivor).status == "unexpected status"
    wait_until(lambda: {task.upid for task in heard} == {upid, survivor})


def test_a_hundred_tasks_by_sixteen_threads(runner: Runner) -> None:
    heard: list[TaskRecord] = []
    lock = threading.Lock()

    def listen(task: TaskRecord) -> None:
        with lock:
            heard.append(task)

    runner.listeners.append(listen)
    before = runner.journal.get(runner.start(Stamp(), ANNA)).upid
    with ThreadPoolExecutor(16) as pool:
        upids = list(
            pool.map(lambda n: runner.start(Build((f"t{n}",), target=str(n % 10)), ANNA, lock_wait=60), range(100))
        )
    assert len({str(upid) for upid in upids}) == 100
    ends = [settled(runner.journal, upid, 60) for upid in upids]
    assert {task.status for task in ends} == {"OK"}
    assert things(runner) >= {f"t{n}" for n in range(100)}
    wait_until(lambda: {str(task.upid) for task in heard} >= {str(upid) for upid in upids})
    assert [task.upid for task in heard].count(before) <= 1


def test_a_kind_that_the_zygote_does_not_know(runner: Runner) -> None:
    reply = {"kind": "unheard-of", "data": {}, "user": "anna@pve", "lock_wait": 1}
    with pytest.raises(Failure, match="has no operation 'unheard-of'"):
        runner.zygote.request(reply)
