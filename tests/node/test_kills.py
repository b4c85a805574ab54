# SPDX-License-Identifier: AGPL-3.0-or-later
"""The daemon, a task, or both are killed at every transition that creating, starting and destroying journal.

Then nothing half made may remain: the operation has either happened wholly or not at all, no lock is stuck, and a guest
that ran still runs and is found.
"""

import contextlib
import json
import os
import random
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests.node.harness import Guest, Node, eventually

from orrery.tasks.faultstop import VARIABLE

POOL = "swimmers"
VMID = 200
ABANDONED = "nobody waited for the task to start"
KILLED = "unexpected status"


@dataclass
class Stopped:
    """A task that stopped itself right after its n-th transition."""

    upid: str
    pid: int
    transition: str


@dataclass
class Stage:
    """A node on which a guest runs, and the file that tells tasks where to stop."""

    node: Node
    bystander: Guest
    file: Path
    seen: list[str] = field(default_factory=list)

    @property
    def told(self) -> Path:
        return self.file.with_name(f"{self.file.name}.stopped")

    def serve(self) -> None:
        self.node.serve({VARIABLE: str(self.file)})

    def stop_at(self, kind: str, n: int) -> None:
        self.told.unlink(missing_ok=True)
        self.file.write_text(f"{kind}:{n}")

    def go(self, verb: str, path: str, parameters: dict[str, Any]) -> Stopped | None:
        """Asks for an operation; the task when it has stopped, None when it ended before its n-th transition."""
        answer: list[Any] = []

        def ask() -> None:
            with contextlib.suppress(Exception):  # the daemon may be killed before it answers
                answer.append(self.node.root.call(verb, path, parameters))

        asking = threading.Thread(target=ask, daemon=True)
        asking.start()
        eventually(lambda: self.told.exists() or (answer and not self.open_tasks()), 60, "a stop or an end")
        self.file.unlink()
        if not self.told.exists():
            return None
        told = json.loads(self.told.read_text())
        eventually(lambda: b") T " in Path(f"/proc/{told['pid']}/stat").read_bytes(), 10, "the stop")
        self.seen.append(told["transition"])
        return Stopped(told["upid"], told["pid"], told["transition"])

    def open_tasks(self) -> int:
        """Tasks that have not ended, or have something left to undo."""
        question = """SELECT count(*) FROM task WHERE state != 'ended'
            OR serial IN (SELECT task FROM transition WHERE state = 'pending')"""
        with contextlib.closing(sqlite3.connect(f"file:{self.node.paths.tasks_db}?mode=ro", uri=True)) as journal:
            return int(journal.execute(question).fetchone()[0])

    def settle(self) -> None:
        eventually(lambda: not self.open_tasks(), 30, "the end of all tasks")

    def check(self, *, exists: bool, runs: bool) -> None:
        """Guest 200 is there as a whole or not at all, and so is everything else."""
        node = self.node
        assert node.locks() == []
        configured = {row["vmid"]: row for row in node.root.get(f"{node.path}/qemu")}
        assert set(configured) == {self.bystander.vmid} | ({VMID} if exists else set())
        assert configured[self.bystander.vmid]["status"] == "running"
        assert self.bystander.status()["qmpstatus"] == "running"
        running = [self.bystander.vmid, *([VMID] if runs else [])]
        assert node.machines() == running
        assert sorted(int(folder.name) for folder in node.paths.guests_run.iterdir()) == running
        assert sorted({int(group.name.removeprefix("guest-")) for group in node.groups()}) == running
        assert len(node.taps()) == len(running)
        assert node.images() == ([f"{VMID}/vm-{VMID}-disk-0.raw", f"{VMID}/vm-{VMID}-disk-1.qcow2"] if exists else [])
        members = node.root.get(f"/pools/{POOL}")["members"]
        assert [row["vmid"] for row in members if row["type"] == "qemu"] == ([VMID] if exists else [])
        if exists:
            assert configured[VMID]["status"] == ("running" if runs else "stopped")
            config = node.root.get(f"{node.path}/qemu/{VMID}/config")
            assert "lock" not in config
            assert config["scsi0"] == f"local:{VMID}/vm-{VMID}-disk-0.raw,size=64M"
            assert config["virtio1"] == f"local:{VMID}/vm-{VMID}-disk-1.qcow2,size=64M"


@pytest.fixture(scope="module")
def stage(node: Node, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("kills")
    with Node(folder / "node", port=8206) as made:
        file = folder / "stop"
        made.init().serve({VARIABLE: str(file)})
        made.root.post("/pools", poolid=POOL)
        yield Stage(made, made.guest(vmid=100, net0="virtio,bridge=vmbr0", start=True), file)


@dataclass(frozen=True)
class Verb:
    """An operation under test, and whether guest 200 exists and runs before and after it."""

    kind: str
    verb: str
    path: str
    parameters: dict[str, Any]
    before: tuple[bool, bool]
    after: tuple[bool, bool]
    decided_by: str = "commit"
    """The transition from which on it is completed instead of undone."""


CREATE = {
    "vmid": VMID,
    "memory": 64,
    "pool": POOL,
    "scsi0": "local:0.0625",
    "virtio1": "local:0.0625,format=qcow2",
    "net0": "virtio,bridge=vmbr0",
}
VERBS = [
    Verb("qmcreate", "POST", "/qemu", CREATE, (False, False), (True, False)),
    Verb("qmstart", "POST", f"/qemu/{VMID}/status/start", {}, (True, False), (True, True)),
    Verb("qmdestroy", "DELETE", f"/qemu/{VMID}", {}, (True, False), (False, False), "guest.finish_destroy"),
]
EACH = pytest.mark.parametrize("verb", VERBS, ids=[verb.kind for verb in VERBS])


def prepare(stage: Stage, exists: bool, runs: bool) -> None:
    """Brings guest 200 into a state."""
    node = stage.node
    there = VMID in [row["vmid"] for row in node.root.get(f"{node.path}/qemu")]
    guest = f"{node.path}/qemu/{VMID}"
    if there and node.root.get(f"{guest}/status/current")["status"] == "running" and not runs:
        node.root.wait(node.root.post(f"{guest}/status/stop"))
    if there and not exists:
        node.root.wait(node.root.delete(guest))
    if exists and not there:
        node.root.wait(node.root.post(f"{node.path}/qemu", CREATE))


def every_transition(stage: Stage, verb: Verb) -> Iterator[tuple[Stopped, bool]]:
    """Stops the operation after each of its transitions in turn; with it, whether it will be completed."""
    stage.seen.clear()
    n = 0
    while True:
        n += 1
        prepare(stage, *verb.before)
        stage.stop_at(verb.kind, n)
        stopped = stage.go(verb.verb, f"{stage.node.path}{verb.path}", verb.parameters)
        if stopped is None:
            break
        yield stopped, verb.decided_by in stage.seen
    assert stage.seen[0] == "begin"
    assert stage.seen[-1] == "end"
    assert verb.decided_by in stage.seen
    stage.settle()
    stage.check(exists=verb.after[0], runs=verb.after[1])


def expect(stage: Stage, verb: Verb, completed: bool) -> None:
    exists, runs = verb.after if completed else verb.before
    stage.check(exists=exists, runs=runs)


@EACH
@pytest.mark.timeout(300)
def test_the_task_is_killed(stage: Stage, verb: Verb) -> None:
    for stopped, completed in every_transition(stage, verb):
        os.kill(stopped.pid, signal.SIGKILL)
        stage.settle()
        status = stage.node.root.state(stopped.upid)
        assert status["exitstatus"] == ("OK" if stopped.transition == "end" else KILLED)
        expect(stage, verb, completed)


@EACH
@pytest.mark.timeout(300)
def test_the_daemon_is_killed(stage: Stage, verb: Verb) -> None:
    for stopped, _ in every_transition(stage, verb):
        stage.node.end(signal.SIGKILL)
        os.kill(stopped.pid, signal.SIGCONT)
        stage.serve()
        stage.settle()
        told = stopped.transition != "begin"
        assert stage.node.root.state(stopped.upid)["exitstatus"] == ("OK" if told else ABANDONED)
        expect(stage, verb, told)


@EACH
@pytest.mark.timeout(300)
def test_task_and_daemon_are_killed(stage: Stage, verb: Verb) -> None:
    for stopped, completed in every_transition(stage, verb):
        stage.node.end(signal.SIGKILL)
        os.kill(stopped.pid, signal.SIGKILL)
        stage.serve()
        stage.settle()
        status = stage.node.root.state(stopped.upid)
        assert status["exitstatus"] == ("OK" if stopped.transition == "end" else KILLED)
        expect(stage, verb, completed)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("verb", VERBS, ids=[verb.kind for verb in VERBS])
def test_the_task_is_killed_at_any_moment(stage: Stage, verb: Verb) -> None:
    """Between two transitions things are half made: whatever state they are in, the end is all or nothing."""
    chance = random.Random(4711)
    for _ in range(40):
        prepare(stage, *verb.before)
        upid = stage.node.root.call(verb.verb, f"{stage.node.path}{verb.path}", verb.parameters)
        time.sleep(chance.uniform(0, 0.25))
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(upid.split(":")[2], 16), signal.SIGKILL)
        stage.settle()
        completed = [row["vmid"] for row in stage.node.root.get(f"{stage.node.path}/qemu") if row["vmid"] == VMID]
        runs = VMID in stage.node.machines()
        assert (bool(completed), runs) in (verb.before, verb.after)
        stage.check(exists=bool(completed), runs=runs)
