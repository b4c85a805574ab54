# SPDX-License-Identifier: AGPL-3.0-or-later
"""Whoever is killed while a task is handed over: nobody else stumbles over it, and no task goes unwatched."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.unit.tasks import dummies
from tests.unit.tasks.node import ANNA, REPOSITORY, make_paths, running, settled, wait_until

from orrery.system import process
from orrery.tasks.runner import Runner


class BareZygote:
    """A zygote whose core is the test."""

    def __init__(self, root: Path) -> None:
        self.paths = make_paths(root)
        self.core, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "orrery.tasks.zygote_process", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stderr=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            )

    def greet(self) -> None:
        hello = {
            "root": str(self.paths.root),
            "node": "n1",
            "preload": ["tests.unit.tasks.dummies"],
            "context": "tests.unit.tasks.dummies:open_workshop",
        }
        self.core.send(json.dumps(hello).encode())
        assert json.loads(self.core.recv(1 << 16))["ready"]

    def end(self) -> tuple[int, str]:
        """Its exit code once the core is gone, and what it and its tasks complained of."""
        self.core.close()
        said = self.process.communicate(timeout=60)[1].decode()
        log = self.paths.daemon_log
        return self.process.returncode, said + (log.read_text() if log.exists() else "")


def test_a_core_that_dies_before_it_says_a_word(tmp_path: Path) -> None:
    assert BareZygote(tmp_path).end() == (0, "")


def test_a_core_that_dies_before_it_says_what_to_do(tmp_path: Path) -> None:
    zygote = BareZygote(tmp_path)
    zygote.greet()
    ours, theirs = socket.socketpair()
    with theirs:
        socket.send_fds(zygote.core, [b"{}"], [theirs.fileno()])
    ours.close()
    ended = json.loads(zygote.core.recv(1 << 16))
    assert ended["status"] == 0
    assert zygote.end() == (0, "")


def test_a_task_that_begins_when_its_zygote_is_dead_and_replaced_is_watched(tmp_path: Path) -> None:
    """The new zygote knows nothing of it, and those that were found when the old one died did not include it."""
    with running(tmp_path) as runner:
        runner.zygote.wait_ready()
        replace_zygote_before_answers(runner)
        upid = runner.start(dummies.Wait(seconds=60), ANNA)
        wait_until(lambda: (tmp_path / "lib/things/waiting").exists())
        process.signal(runner.journal.get(upid).worker, 9)
        assert settled(runner.journal, upid).status == "unexpected status"
        assert not (tmp_path / "lib/things/waiting").exists()


def replace_zygote_before_answers(runner: Runner) -> None:
    """Lets the next answer of a task reach the runner only after its zygote has been replaced."""
    request = runner.zygote.request
    adopt = runner._adopt_all

    def late(payload: dict[str, Any], **more: Any) -> dict[str, Any]:
        runner.zygote.request = request  # type: ignore[method-assign]
        found: list[bool] = []
        runner._adopt_all = lambda: found.append(True)  # type: ignore[method-assign]
        reply = request(payload, **more)
        old = runner.zygote.process
        assert old is not None
        process.signal(old, 9)
        wait_until(lambda: bool(found))
        runner._adopt_all = adopt  # type: ignore[method-assign]
        return reply

    runner.zygote.request = late  # type: ignore[method-assign, assignment]
