# SPDX-License-Identifier: AGPL-3.0-or-later
"""Starting heeds the time that its caller gives it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orrery.drivers.qemu.launching import READY_SECONDS
from orrery.model.guest import GuestConfig, GuestRecord
from orrery.operations.guest_power import StartMachine
from orrery.store.guests import add_guest
from orrery.store.memory import MemoryStore
from orrery.system.paths import Paths
from orrery.system.process import ProcessId


class Machines:
    """A driver that starts nothing and notes how long it would wait."""

    def __init__(self) -> None:
        self.patience: list[float] = []

    def find(self, vmid: int) -> None:
        return None

    def plan(self, *arguments: Any) -> None:
        return None

    def launch(self, plan: Any, log: Any, patience: float) -> ProcessId:
        self.patience.append(patience)
        return ProcessId(1, 1)


@pytest.mark.parametrize(("timeout", "expected"), [(None, READY_SECONDS), (0, READY_SECONDS), (300, 300)])
def test_a_start_waits_as_long_as_it_may(timeout: int | None, expected: float, tmp_path: Path) -> None:
    store, machines = MemoryStore(), Machines()
    add_guest(store, GuestRecord(100, "qemu", "n1", GuestConfig(options={"memory": "64"})))
    ctx: Any = SimpleNamespace(store=store, node="n1", machines=machines, paths=Paths.of(tmp_path))
    task: Any = SimpleNamespace(before=lambda undo, **arguments: 0, log=lambda text: None, commit=lambda: None)
    StartMachine(100, timeout=timeout).run(ctx, task)
    assert machines.patience == [expected]
