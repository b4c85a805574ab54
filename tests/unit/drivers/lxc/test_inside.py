# SPDX-License-Identifier: AGPL-3.0-or-later
"""How a container's system is asked to end: real processes that bear the names of inits."""

import shutil
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest

from orrery.drivers.lxc import inside
from orrery.errors import Failure
from orrery.system import process
from orrery.system.process import Completed, ProcessId


@pytest.fixture
def pretend(tmp_path: Path):
    """Starts `sleep` under another name."""
    begun: list[ProcessId] = []

    def start(name: str) -> ProcessId:
        program = tmp_path / name
        shutil.copy("/bin/sleep", program)
        begun.append(process.spawn([str(program), "1000"]))
        return begun[-1]

    yield start
    for each in begun:
        process.signal(each, signal.SIGKILL)
        process.wait(each, 10)
        process.reap(each)


def ended_by(child: ProcessId) -> int:
    assert process.wait(child, 30)
    code = process.reap(child)
    assert code is not None
    return -code


def no_program(argv: Sequence[str]) -> Completed:
    raise AssertionError(argv)


@pytest.mark.parametrize(
    ("name", "wish", "number"),
    [("systemd", "stop", 37), ("systemd", "reboot", 39), ("server", "stop", signal.SIGTERM)],
)
def test_signals(pretend, name: str, wish: inside.Wish, number: int) -> None:
    child = pretend(name)
    inside.ask(child.pid, wish, no_program)
    assert ended_by(child) == number


def test_a_plain_program_does_not_reboot(pretend) -> None:
    with pytest.raises(Failure, match="'server', the first process of this container, cannot be asked to reboot"):
        inside.ask(pretend("server").pid, "reboot", no_program)


def test_other_inits_are_asked_by_their_programs(pretend) -> None:
    child, asked = pretend("init"), []

    def only_poweroff(argv: Sequence[str]) -> Completed:
        asked.append(argv[0])
        return Completed(tuple(argv), 0 if argv[0] == "/sbin/poweroff" else 127, b"", b"no such thing\n")

    inside.ask(child.pid, "stop", only_poweroff)
    assert asked == ["/sbin/shutdown", "/sbin/openrc-shutdown", "/sbin/poweroff"]
    with pytest.raises(Failure, match="could not be asked to reboot: no such thing"):
        inside.ask(child.pid, "reboot", only_poweroff)


def test_who_has_ended_needs_not_be_asked() -> None:
    inside.ask(1 << 30, "stop", no_program)
