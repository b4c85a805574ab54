# SPDX-License-Identifier: AGPL-3.0-or-later
"""Which machines give memory to a host that runs short, and which are left alone."""

from collections.abc import Mapping
from dataclasses import replace

import pytest

from orrery.drivers.qemu.watcher import Sample
from orrery.errors import Failure
from orrery.metrics.ballooning import LATELY, Ballooning, limits
from orrery.model.ballooning import STEP
from orrery.model.guest import GuestConfig, GuestRecord
from orrery.store.guests import add_guest, find_guest, write_guest
from orrery.store.memory import MemoryStore
from orrery.system.host import Memory

MIB = 1 << 20
GIB = 1 << 30
NOW = 1000.0
RUNNING = Sample(at=NOW, state="running", cpu=0, memory=0, disk_read=0, disk_written=0, balloon=4 * GIB, heard=NOW)


class Reports:
    def __init__(self, *samples: Sample) -> None:
        self.found: dict[int, Sample] = dict(enumerate(samples, 100))
        self.asked: dict[int, int] = {}
        self.deaf: set[int] = set()

    def samples(self) -> Mapping[int, Sample]:
        return dict(self.found)

    def set_balloon(self, vmid: int, size: int) -> None:
        if vmid in self.deaf:
            raise Failure("it does not listen")
        self.asked[vmid] = size


def ballooning(reports: Reports, used: float, **options: str) -> tuple[Ballooning, MemoryStore]:
    """On a host of 100 GiB, with machines of 4 GiB that may shrink to 1 GiB."""
    store = MemoryStore()
    for vmid in reports.found:
        wanted = {"memory": "4096", "balloon": "1024"} | options
        add_guest(store, GuestRecord(vmid, "qemu", "alpha", GuestConfig(options=wanted)))
    total = 100 * GIB
    left = int(total * (1 - used))
    memory = Memory(total=total, free=left, available=left, swap_total=0, swap_free=0)
    return Ballooning(store, reports, lambda: memory, lambda: NOW), store


def test_machines_give_when_memory_is_short_and_get_it_back() -> None:
    reports = Reports(RUNNING, replace(RUNNING, balloon=3 * GIB))
    ballooning(reports, 0.95)[0].step()
    assert reports.asked == {100: 4 * GIB - STEP, 101: 3 * GIB - STEP}
    reports.asked.clear()
    ballooning(reports, 0.5)[0].step()
    assert reports.asked == {101: 3 * GIB + STEP}


@pytest.mark.parametrize(
    "sample",
    [
        replace(RUNNING, balloon=None),
        replace(RUNNING, state="paused"),
        replace(RUNNING, heard=None),
        replace(RUNNING, heard=NOW - LATELY - 1),
        replace(RUNNING, at=NOW - LATELY - 1),
    ],
    ids=["no balloon", "paused", "never told", "silent", "does not answer"],
)
def test_who_does_not_answer_is_left_alone(sample: Sample) -> None:
    reports = Reports(sample)
    ballooning(reports, 0.99)[0].step()
    assert reports.asked == {}


@pytest.mark.parametrize("options", [{"shares": "0"}, {"balloon": "0"}, {"balloon": "4096"}])
def test_who_may_not_move_is_left_alone(options: dict[str, str]) -> None:
    reports = Reports(RUNNING)
    ballooning(reports, 0.99, **options)[0].step()
    assert reports.asked == {}


def test_a_deaf_machine_keeps_no_other_from_giving() -> None:
    reports = Reports(RUNNING, RUNNING)
    reports.deaf.add(100)
    ballooning(reports, 0.99)[0].step()
    assert reports.asked == {101: 4 * GIB - STEP}


def test_one_that_cannot_be_read_keeps_no_other_from_giving() -> None:
    reports = Reports(RUNNING, RUNNING)
    service, store = ballooning(reports, 0.95)
    found = find_guest(store, 100)
    assert found is not None
    broken = GuestConfig(options={"memory": "a lot", "balloon": "1024"})
    write_guest(store, replace(found.record, config=broken), found.revision)
    service.step()
    assert reports.asked == {101: 4 * GIB - STEP}


def test_a_changed_configuration_counts_at_once() -> None:
    reports = Reports(RUNNING)
    service, store = ballooning(reports, 0.99)
    service.step()
    stored = find_guest(store, 100)
    assert stored is not None
    changed = replace(stored.record, config=stored.record.config.with_options({"shares": "0"}))
    write_guest(store, changed, stored.revision)
    reports.asked.clear()
    service.step()
    assert reports.asked == {}


def test_a_machine_that_was_just_destroyed_is_no_trouble() -> None:
    reports = Reports(RUNNING)
    service, _ = ballooning(reports, 0.99)
    reports.found[200] = RUNNING
    service.step()
    assert set(reports.asked) == {100}


def test_limits() -> None:
    assert limits({"memory": "2048", "balloon": "512"}) == (512 * MIB, 2048 * MIB, 1000)
    assert limits({"memory": "current=2048", "balloon": "512", "shares": "7"}) == (512 * MIB, 2048 * MIB, 7)
    assert limits({"memory": "2048"}) is None
