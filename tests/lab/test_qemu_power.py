# SPDX-License-Identifier: AGPL-3.0-or-later
"""Starting, ending and losing machines: with a real QEMU, and a real guest where one is needed."""

import asyncio
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tests.lab import qemu_lab

from orrery.drivers.qemu.driver import QemuDriver
from orrery.drivers.qemu.monitor import MonitorError
from orrery.drivers.qemu.plan import Resources, VolumeFile
from orrery.drivers.qemu.records import guest_uid, strays
from orrery.drivers.qemu.watcher import ENDED, MachineEvent, MachineWatcher
from orrery.errors import Failure
from orrery.model.guest import GuestConfig
from orrery.system import cgroup, process

pytestmark = [pytest.mark.root, pytest.mark.guest]

BARE = GuestConfig.from_text("memory: 32\nvga: none\n")


def ignore(text: str) -> None:
    pass


def start(driver: QemuDriver, config: GuestConfig = BARE, vmid: int = 100) -> int:
    return driver.launch(driver.plan(vmid, config), ignore).pid


def boot(driver: QemuDriver, image: Path, text: str = qemu_lab.LINUX) -> GuestConfig:
    """A guest that is up: its power button and its agent work."""
    config = GuestConfig.from_text(text)
    disk = qemu_lab.copy(image, driver.paths.lib / "disk.qcow2")
    with qemu_lab.taps(config) as taps:
        driver.launch(driver.plan(100, config, {"scsi0": VolumeFile(disk, "qcow2")}, taps), ignore)
    agent = driver.agent(100, config)
    qemu_lab.until("the agent answers", lambda: agent.ping(1), 90)
    return config


# --- a guest that listens


def test_guest_obeys_the_power_button(qemu: QemuDriver, demo_image: Path) -> None:
    boot(qemu, demo_image)
    qemu.powerdown(100)
    assert qemu.wait_end(100, 60)
    assert qemu.find(100) is None
    qemu.forget(100)
    assert not qemu.folder(100).exists()
    assert not cgroup.guest_group(qemu.paths.root_hash, 100).exists()


@pytest.mark.slow
def test_guest_obeys_its_agent(qemu: QemuDriver, demo_image: Path) -> None:
    config = boot(qemu, demo_image)
    assert qemu.agent(100, config).command("shutdown") == {}
    assert qemu.wait_end(100, 60)


@pytest.mark.slow
def test_machine_that_shall_not_reboot_ends_instead(qemu: QemuDriver, demo_image: Path) -> None:
    config = boot(qemu, demo_image, qemu_lab.LINUX + "reboot: 0\n")
    qemu.agent(100, config).exec(["/bin/sh", "-c", "reboot -f"])
    assert qemu.wait_end(100, 60)


# --- machines that listen to nobody


def test_guest_that_ignores_the_button_is_stopped(qemu: QemuDriver) -> None:
    start(qemu)
    qemu.powerdown(100)
    assert not qemu.wait_end(100, 0.5)
    assert qemu.stop(100)
    assert qemu.find(100) is None
    assert not qemu.stop(100)


def test_wedged_machine_says_so_and_is_stopped_anyway(qemu: QemuDriver) -> None:
    os.kill(start(qemu), signal.SIGSTOP)
    with pytest.raises(MonitorError, match=r"VM 100 qmp command '\w+' failed - got timeout") as caught:
        qemu.status(100, timeout=0.3)
    assert caught.value.kind == "timeout"
    begun = time.monotonic()
    qemu.kill(100, grace=0.5)
    assert time.monotonic() - begun < 3
    assert qemu.find(100) is None


def test_machine_that_ended_is_not_running(qemu: QemuDriver) -> None:
    machine = start(qemu)
    os.kill(machine, signal.SIGKILL)
    qemu_lab.until("the machine has ended", lambda: qemu.find(100) is None)
    with pytest.raises(Failure, match="VM 100 not running"):
        qemu.status(100)
    config = BARE.with_options({"agent": "1"})
    with pytest.raises(Failure, match="VM 100 is not running"):
        qemu.agent(100, config)
    with pytest.raises(Failure, match="No QEMU guest agent configured"):
        qemu.agent(100, BARE)
    start(qemu)  # what the dead one left behind is in nobody's way


def test_agent_that_is_not_there_is_reported(qemu: QemuDriver) -> None:
    config = BARE.with_options({"agent": "1"})
    start(qemu, config)
    agent = qemu.agent(100, config)
    assert not agent.ping(0.2)
    with pytest.raises(Failure, match="QEMU guest agent is not running"):
        agent.command("get-osinfo")


# --- starting


def test_qemu_that_ends_at_once_is_quoted(qemu: QemuDriver) -> None:
    config = BARE.with_options({"args": "-device no-such-device"})
    with pytest.raises(Failure, match=r"QEMU ended at once: .*'no-such-device' is not a valid device model name"):
        start(qemu, config)
    assert qemu.find(100) is None
    qemu.forget(100)


def test_missing_volume_stops_the_start(qemu: QemuDriver) -> None:
    config = BARE.with_options({"virtio0": "local:100/vm-100-disk-0.qcow2"})
    plan = qemu.plan(100, config, {"virtio0": VolumeFile(qemu.paths.lib / "gone.qcow2", "qcow2")})
    with pytest.raises(Failure, match=r"unable to open '.*gone\.qcow2'"):
        qemu.launch(plan, ignore)
    qemu.discard(100)


def test_refused_command_ends_the_start(qemu: QemuDriver) -> None:
    plan = qemu.plan(100, BARE)
    commands = (*plan.commands, replace(plan.commands[0], name="no-such-command"))
    with pytest.raises(MonitorError, match="no-such-command"):
        qemu.launch(replace(plan, commands=commands), ignore)
    assert strays(guest_uid(qemu.paths, 100)) == []


def test_frozen_machine_waits(qemu: QemuDriver) -> None:
    start(qemu, BARE.with_options({"freeze": "1"}))
    assert qemu.status(100).state == "prelaunch"
    qemu.resume(100)
    assert qemu.status(100).running


def test_machine_whose_starter_died_is_found_by_its_user(qemu: QemuDriver) -> None:
    machine = qemu.launch(qemu.plan(100, BARE), ignore)
    (qemu.folder(100) / "process.json").unlink()
    assert QemuDriver(qemu.paths).find(100) == machine
    (qemu.folder(100) / "process.json").write_text("{damaged")
    assert QemuDriver(qemu.paths).running() == {100: machine}
    with pytest.raises(Failure, match="already running"):
        start(qemu)
    qemu.discard(100)
    assert strays(guest_uid(qemu.paths, 100)) == []
    qemu.discard(100)


def test_machine_without_its_folder_is_not_started_again(qemu: QemuDriver) -> None:
    start(qemu)
    for path in qemu.folder(100).iterdir():
        path.unlink()
    qemu.folder(100).rmdir()
    with pytest.raises(Failure, match="unrecorded process of VM 100"):
        start(qemu)
    qemu.kill(100)
    start(qemu)


def test_limits_are_in_force_and_change(qemu: QemuDriver) -> None:
    config = BARE.with_options({"cores": "2", "cpulimit": "0.5", "cpuunits": "200"})
    warnings: list[str] = []
    machine = qemu.launch(qemu.plan(100, config), warnings.append)
    group = cgroup.guest_group(qemu.paths.root_hash, 100)
    if any("control group" in warning or "not in force" in warning for warning in warnings):
        pytest.skip(f"no control groups here: {warnings}")
    assert machine.pid in group.pids()
    before = group.usage().cpu or 0
    time.sleep(1)
    used = ((group.usage().cpu or 0) - before) / 1e9
    assert used < 0.75
    assert qemu.limit(100, Resources(cpu_limit=0.0, cpu_units=None)) == []


def test_hundred_machines_are_counted_quickly(qemu: QemuDriver) -> None:
    for vmid in range(100, 105):
        start(qemu, vmid=vmid)
    assert sorted(qemu.running()) == [100, 101, 102, 103, 104]
    begun = time.perf_counter()
    for _ in range(20):
        qemu.running()
    assert (time.perf_counter() - begun) / 100 < 0.002  # per machine
    assert len({Path(f"/proc/{each.pid}").stat().st_uid for each in qemu.running().values()}) == 5


# --- the daemon's ear


async def holds(what: str, probe: Callable[[], object]) -> None:
    await asyncio.to_thread(qemu_lab.until, what, probe, 10.0)


def test_watcher_reports_events_samples_and_the_end(qemu: QemuDriver) -> None:
    start(qemu, BARE.with_options({"freeze": "1"}))
    seen: list[MachineEvent] = []
    watcher = MachineWatcher(qemu.paths, seen.append, interval=0.1, rescan=0.1)

    async def until(what: str) -> None:
        await holds(what, lambda: any(event.name == what for event in seen))

    async def work() -> None:
        task = asyncio.create_task(watcher.run())
        await holds("there is a sample", lambda: watcher.samples)
        assert watcher.samples[100].state == "prelaunch"
        await asyncio.to_thread(qemu.resume, 100)
        await until("RESUME")
        await asyncio.to_thread(qemu.reset, 100)
        await until("RESET")
        await holds("it runs", lambda: watcher.samples[100].state == "running")
        assert watcher.samples[100].memory > 1 << 20
        await asyncio.to_thread(start, qemu, BARE, 101)
        watcher.look()
        await holds("the new one is found", lambda: 101 in watcher.samples)
        await asyncio.to_thread(qemu.stop, 100)
        await until(ENDED)
        assert set(watcher.samples) == {101}
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(work())
    shutdown = next(event for event in seen if event.name == "SHUTDOWN")
    assert (shutdown.vmid, shutdown.data["reason"]) == (100, "host-qmp-quit")
    assert [event.vmid for event in seen if event.name == ENDED] == [100]


def test_watcher_leaves_tasks_their_monitors(qemu: QemuDriver) -> None:
    start(qemu)

    async def work() -> None:
        watcher = MachineWatcher(qemu.paths, lambda event: None, interval=0.05)
        task = asyncio.create_task(watcher.run())
        await holds("there is a sample", lambda: watcher.samples)
        for _ in range(5):
            assert (await asyncio.to_thread(qemu.status, 100, 1.0)).running
        task.cancel()

    asyncio.run(work())
    assert process.alive(qemu.running()[100])


def test_watcher_in_a_thread_of_its_own(qemu: QemuDriver) -> None:
    start(qemu)
    seen: list[MachineEvent] = []
    watcher = MachineWatcher(qemu.paths, seen.append, rescan=60)
    watcher.start()
    qemu_lab.until("there is a sample", lambda: 100 in watcher.samples, 10)
    start(qemu, vmid=101)
    watcher.look()
    qemu_lab.until("the new one is found", lambda: 101 in watcher.samples, 10)
    watcher.stop()
    watcher.stop()
    qemu.stop(101)
    assert ENDED not in {event.name for event in seen}
    assert qemu.status(100).running
