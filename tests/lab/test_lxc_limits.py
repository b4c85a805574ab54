# SPDX-License-Identifier: AGPL-3.0-or-later
"""Limits of real containers, under stress and changed while they run."""

import time
from pathlib import Path

import pytest
from tests.lab.lxc_lab import CONFIG, Lab, until

from orrery.drivers.lxc.records import groups
from orrery.model.guest import GuestConfig

pytestmark = pytest.mark.root


def test_memory(lxc: Lab) -> None:
    lxc.start(100, memory="48")
    assert lxc.run(100, "dd", "if=/dev/zero", "of=/dev/null", "bs=120M", "count=1").returncode in (1, 137)
    assert lxc.driver.state(100) == "running"
    assert lxc.driver.usage(100).memory < 48 << 20
    assert lxc.driver.apply_limits(100, GuestConfig(options={**CONFIG, "memory": "300"})) == []
    lxc.out(100, "dd if=/dev/zero of=/dev/null bs=120M count=1")
    assert lxc.driver.apply_limits(100, GuestConfig(options={**CONFIG, "memory": "48", "swap": "16"})) == []
    assert lxc.run(100, "dd", "if=/dev/zero", "of=/dev/null", "bs=120M", "count=1").returncode in (1, 137)


def test_processes(lxc: Lab) -> None:
    lxc.start(100)
    group, _ = groups(lxc.driver.paths, 100)
    assert group.limit_pids(40) == []
    done = lxc.run(100, "sh", "-c", "for i in $(seq 200); do sleep 1000 >/dev/null 2>&1 & done; exit 0")
    assert b"fork" in done.stderr
    assert len(group.pids()) <= 40
    assert lxc.driver.stop(100)


def test_processor_time(lxc: Lab) -> None:
    lxc.start(100, cpulimit="0.2")
    lxc.run(100, "sh", "-c", "(while :; do :; done) >/dev/null 2>&1 &")
    time.sleep(0.3)
    before, begin = lxc.driver.usage(100).cpu, time.monotonic()
    time.sleep(1)
    share = (lxc.driver.usage(100).cpu - before) / 1e9 / (time.monotonic() - begin)
    assert 0.005 < share < 0.4


def test_processors(lxc: Lab) -> None:
    lxc.start(100)
    assert lxc.out(100, "nproc") == "1"
    assert lxc.driver.apply_limits(100, GuestConfig(options={**CONFIG, "cores": "2"})) == []
    assert lxc.out(100, "nproc") == "2"
    assert lxc.driver.apply_limits(100, GuestConfig(options={**CONFIG, "affinity": "1"})) == []
    assert lxc.out(100, "nproc; grep Cpus_allowed_list /proc/self/status").split() == ["1", "Cpus_allowed_list:", "1"]


def test_disk(lxc: Lab) -> None:
    lxc.start(100)
    done = lxc.run(100, "dd", "if=/dev/zero", "of=/tmp/much", "bs=1M", "count=100")
    assert b"No space left" in done.stderr
    assert lxc.driver.state(100) == "running"
    usage = lxc.driver.usage(100)
    assert usage.disk > 0.85 * usage.disk_size


def test_disk_is_that_of_the_root_file_system(lxc: Lab) -> None:
    """What the first process makes its root is up to it, be it one that never answers."""
    elsewhere = "mount -t tmpfs none /mnt && /bin/busybox cp /bin/busybox /mnt && exec chroot /mnt /busybox sleep 1000"
    lxc.start(100, entrypoint=f"/bin/sh -c '{elsewhere}'")
    until("it is elsewhere", lambda: Path(f"/proc/{lxc.driver.init_pid(100)}/root/busybox").exists())
    assert 0 < lxc.driver.usage(100).disk_size <= 24 << 20
