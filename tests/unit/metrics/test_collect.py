# SPDX-License-Identifier: AGPL-3.0-or-later
"""Samples of containers: what their control groups tell, as lists show it."""

import os
from dataclasses import dataclass
from typing import Any

from orrery.drivers.lxc.driver import ContainerUsage
from orrery.errors import Failure
from orrery.metrics.collect import Collector
from orrery.model.guest import GuestConfig, GuestRecord
from orrery.store.guests import add_guest
from orrery.store.memory import MemoryStore
from orrery.system.process import ProcessId, identity


class Nobody:
    """No machine runs, nothing is counted."""

    def running(self) -> dict[int, ProcessId]:
        return {}

    def guest_counters(self) -> dict[int, tuple[int, int]]:
        return {101: (7, 8)}

    def state(self, vmid: int) -> None:
        return None

    def refresh(self) -> None:
        return None


@dataclass
class Containers:
    """One container, whose monitor is this process."""

    usages: list[ContainerUsage | None]

    def running(self) -> dict[int, ProcessId]:
        found = identity(os.getpid())
        assert found is not None
        return {101: found}

    def usage(self, vmid: int) -> ContainerUsage:
        found = self.usages.pop(0)
        if found is None:
            raise Failure(f"CT {vmid} not running")
        return found


def collector(*usages: ContainerUsage | None) -> Collector:
    store, nobody = MemoryStore(), Nobody()
    add_guest(store, GuestRecord(101, "lxc", "n1", GuestConfig(options={"cores": "2"})))
    others: Any = nobody
    return Collector(store, others, Containers(list(usages)), others, others, others)


def used(cpu: int) -> ContainerUsage:
    return ContainerUsage(cpu=cpu, memory=10, swap=20, disk=30, disk_size=40, disk_read=50, disk_written=60)


def test_a_container_is_sampled() -> None:
    made = collector(used(0))
    made.collect()
    sample = made.sample(101)
    assert sample is not None
    assert (sample.mem, sample.swap, sample.disk, sample.diskread, sample.diskwrite) == (10, 20, 30, 50, 60)
    assert (sample.netin, sample.netout, sample.pid, sample.cpu) == (7, 8, os.getpid(), 0.0)


def test_processor_time_is_a_part_of_its_processors() -> None:
    made = collector(used(0), used(10**15), used(10**15))
    for _ in range(2):
        made.collect()
    busy = made.sample(101)
    assert busy is not None
    assert busy.cpu == 1.0, "more than all of its processors is all of them"
    made.collect()
    idle = made.sample(101)
    assert idle is not None
    assert idle.cpu == 0.0


def test_one_that_ended_just_now_has_no_sample_but_is_listed_as_long_as_it_runs() -> None:
    made = collector(None)
    made.collect()
    sample = made.sample(101)
    assert sample is not None
    assert sample.mem == 0
