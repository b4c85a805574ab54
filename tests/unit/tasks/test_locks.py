# SPDX-License-Identifier: AGPL-3.0-or-later
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from tests.unit.tasks.node import DEAD, REPOSITORY, enter, wait_until

from orrery.errors import Cancelled, Locked
from orrery.system.process import ProcessId
from orrery.tasks.journal import Journal
from orrery.tasks.locks import request_owner


def places(journal: Journal, name: str = "x") -> int:
    with journal.database.read() as connection:
        return int(connection.execute("SELECT count(*) FROM lock WHERE name = ?", (name,)).fetchone()[0])


def test_one_at_a_time(journal: Journal) -> None:
    with journal.locked("x") as owner:
        assert owner.startswith(f"request:{os.getpid()}:")
        assert journal.locks.holder("x") == owner
        with (
            pytest.raises(Locked, match=rf"can't lock file 'x' - got timeout.*a request of process {os.getpid()}"),
            journal.locked(["w", "x"], wait=0.05),
        ):
            pass
        assert journal.locks.holder("w") is None
        with journal.locked("y"):
            pass
    assert journal.locks.holder("x") is None
    assert places(journal) == 0


def test_a_lock_is_given_back_after_an_error(journal: Journal) -> None:
    with pytest.raises(ZeroDivisionError), journal.locked(["x", "y"]):
        raise ZeroDivisionError
    assert (journal.locks.holder("x"), journal.locks.holder("y")) == (None, None)


def test_who_asks_first_is_served_first(journal: Journal) -> None:
    served: list[int] = []

    def ask(n: int) -> None:
        with journal.locked("x"):
            served.append(n)
            time.sleep(0.02)

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(8)]
    with journal.locked("x"):
        for n, thread in enumerate(threads, 2):
            thread.start()
            wait_until(lambda n=n: places(journal) == n)  # type: ignore[misc]
    for thread in threads:
        thread.join()
    assert served == list(range(8))


def test_a_newcomer_does_not_overtake(journal: Journal) -> None:
    order: list[str] = []

    def ask() -> None:
        with journal.locked("x"):
            order.append("waited")

    with journal.locked("x"):
        waiter = threading.Thread(target=ask)
        waiter.start()
        wait_until(lambda: places(journal) == 2)
    with journal.locked("x"):
        order.append("newcomer")
    waiter.join()
    assert order == ["waited", "newcomer"]


def test_several_locks_in_any_order_do_not_block_each_other(journal: Journal) -> None:
    inside = 0
    lock = threading.Lock()

    def work(names: list[str]) -> None:
        nonlocal inside
        for _ in range(5):
            with journal.locked(names):
                with lock:
                    inside += 1
                    assert inside == 1
                time.sleep(0.001)
                with lock:
                    inside -= 1

    threads = [threading.Thread(target=work, args=(names,)) for names in (["a", "b"], ["b", "a"], ["b", "a", "c"])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert places(journal, "a") == places(journal, "b") == places(journal, "c") == 0


@pytest.mark.parametrize("held", [True, False], ids=["holder", "waiter"])
def test_a_dead_request_is_in_nobodys_way(journal: Journal, zombie: ProcessId, held: bool) -> None:
    for owner in (zombie, DEAD):
        with journal.database.write() as connection:
            connection.execute(
                "INSERT INTO lock (name, owner, held, since) VALUES ('x', ?, ?, 0)",
                (f"request:{owner.pid}:{owner.start}:1", held),
            )
        with journal.locked("x", wait=0):
            pass


def test_a_request_that_could_not_give_back_its_lock_is_dead(journal: Journal) -> None:
    with journal.database.write() as connection:
        connection.execute("INSERT INTO lock (name, owner, held, since) VALUES ('x', ?, 1, 0)", (request_owner(),))
    with journal.locked("x", wait=0):
        pass


def test_a_dead_task_keeps_its_lock_while_something_is_left_to_undo(journal: Journal, zombie: ProcessId) -> None:
    upid = enter(journal, zombie, locks=("x",))
    record = journal.before(upid, "thing.remove", {"name": "a"})
    with pytest.raises(Locked, match="held by task UPID:n:"), journal.locked("x", wait=0.05):
        pass
    threading.Timer(0.1, lambda: journal.undone(upid, record)).start()
    with journal.locked("x"):
        assert journal.get(upid).running  # its end is told by others; the lock does not wait for that


def test_a_dead_task_that_waited_is_in_nobodys_way(journal: Journal, zombie: ProcessId) -> None:
    upid = enter(journal, zombie)
    journal.before(upid, "thing.remove", {"name": "a"})
    with journal.database.write() as connection:
        connection.execute("INSERT INTO lock (name, owner, held, since) VALUES ('x', ?, 0, 0)", (str(upid),))
    with journal.locked("x", wait=0):
        pass


def test_a_waiter_can_be_called_off(journal: Journal) -> None:
    upid = enter(journal)
    end = time.monotonic() + 0.1

    def safe_point() -> None:
        if time.monotonic() > end:
            raise Cancelled

    with journal.locked("x"):
        with pytest.raises(Cancelled):
            journal.locks.acquire(["w", "x"], str(upid), 10, safe_point)
        assert journal.locks.holder("w") is None
        assert places(journal) == 1


def test_a_killed_holder_in_another_process(journal: Journal, tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from orrery.tasks.journal import Journal\n"
        f"with Journal(Path({str(journal.database.path)!r}), Path({str(tmp_path)!r})).locked('x'):\n"
        "    print('held', flush=True); time.sleep(60)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    with (
        pytest.raises(Locked, match=f"a request of process {child.pid}"),
        journal.locked("x", wait=0.05),
    ):
        pass
    threading.Timer(0.2, child.kill).start()
    with journal.locked("x"):  # a zombie now, since nobody has waited for it
        pass
    child.wait()
    child.stdout.close()


def test_a_starting_core_forgets_the_requests_of_others(journal: Journal) -> None:
    upid = enter(journal, locks=("z",))
    with journal.database.write() as connection:
        connection.execute("INSERT INTO lock (name, owner, held, since) VALUES ('y', 'request:1:1:1', 1, 0)")
    with journal.locked("x") as mine:
        assert journal.locks.forget_requests() == 1
        assert [journal.locks.holder(name) for name in "xyz"] == [mine, None, str(upid)]
