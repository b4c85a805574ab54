# SPDX-License-Identifier: AGPL-3.0-or-later
"""A node reduced to its tasks: in this process for most tests, as a process of its own to be killed.

`python -m tests.unit.tasks.node ROOT` takes up what the last one left, prints `ready`, and then starts an operation for
each line of its input (`KIND JSON`), answering with the UPID.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from tests.unit.tasks import dummies

from orrery.model.identity import Identity
from orrery.system import process
from orrery.system.paths import Paths
from orrery.system.process import ProcessId
from orrery.tasks import registry
from orrery.tasks.daemonlog import log_into
from orrery.tasks.journal import Journal
from orrery.tasks.locks import own_identity
from orrery.tasks.runner import Runner
from orrery.tasks.task import TaskRecord, Upid
from orrery.tasks.zygote import Zygote

REPOSITORY = Path(__file__).parents[3]
ANNA = Identity.parse("anna@pve")
DEAD = ProcessId(1 << 22, 1)  # no process has a number above pid_max


def make_paths(root: Path) -> Paths:
    paths = Paths.of(root)
    for folder in (paths.etc, paths.lib, paths.log, paths.run, paths.task_logs, paths.tasks_run):
        folder.mkdir(parents=True, exist_ok=True)
    return paths


@contextlib.contextmanager
def running(root: Path, retry_seconds: float = 0.01) -> Iterator[Runner]:
    """A runner in this process."""
    paths = make_paths(root)
    os.environ["PYTHONPATH"] = str(REPOSITORY)
    zygote = Zygote(paths, "n1", preload=["tests.unit.tasks.dummies"], context="tests.unit.tasks.dummies:open_workshop")
    zygote.launch()
    journal = Journal(paths.tasks_db, paths.task_logs)
    runner = Runner(paths, "n1", journal, zygote)
    runner.retry_seconds = retry_seconds
    runner.open()
    try:
        yield runner
    finally:
        runner.close()
        journal.database.close()


class Daemon:
    """A runner in a process of its own, which can be killed."""

    def __init__(self, root: Path, environment: dict[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.unit.tasks.node", str(root)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), **(environment or {})},
        )
        assert self._out.readline() == "ready\n"

    @property
    def _out(self) -> IO[str]:
        assert self.process.stdout is not None
        return self.process.stdout

    def order(self, operation: dummies.Build | dummies.Wait) -> None:
        """Has a task started, without waiting for its UPID."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{operation.kind} {json.dumps(registry.encode(operation))}\n")
        self.process.stdin.flush()

    def upid(self) -> Upid:
        """The answer to an order."""
        return Upid.parse(self._out.readline().strip())

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self._out.close()
        if self.process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()


def enter(
    journal: Journal,
    worker: ProcessId | None = None,
    *,
    kind: str = "qmstart",
    subject: str = "100",
    user: str = "a@pve",
    starttime: int = 1000,
    locks: tuple[str, ...] = (),
) -> Upid:
    """Begins a task in the journal alone; `worker` is its process, by default this one."""
    who = worker or own_identity()
    upid = Upid("n", who.pid, who.start, starttime, kind, subject, user)
    journal.begin(upid, {"vmid": 100}, locks)
    return upid


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.01)


def ended(journal: Journal, upid: Upid, seconds: float = 20.0) -> TaskRecord:
    wait_until(lambda: not journal.get(upid).running, seconds)
    return journal.get(upid)


def settled(journal: Journal, upid: Upid, seconds: float = 20.0) -> TaskRecord:
    """Ended, nothing left to undo, its process gone."""
    wait_until(lambda: journal.get(upid).settled and not process.alive(journal.get(upid).worker), seconds)
    return journal.get(upid)


def log_of(journal: Journal, upid: Upid) -> list[str]:
    return [line.t for line in journal.read_log(upid, 0, 0)[0]]


def main() -> None:
    log_into(make_paths(Path(sys.argv[1])).daemon_log)
    with running(Path(sys.argv[1]), retry_seconds=3600) as runner:
        runner.zygote.wait_ready()
        print("ready", flush=True)
        for line in sys.stdin:
            kind, _, data = line.partition(" ")
            print(runner.start(registry.decode(kind, json.loads(data)), ANNA), flush=True)


if __name__ == "__main__":
    main()
