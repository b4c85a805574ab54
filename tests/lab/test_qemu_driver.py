# SPDX-License-Identifier: AGPL-3.0-or-later
"""The driver with a real QEMU and a real guest: it boots, it is confined, and everything is changed while it runs."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.lab import qemu_lab

from orrery.drivers.qemu.agent import Agent
from orrery.drivers.qemu.driver import QemuDriver
from orrery.drivers.qemu.monitor import Monitor
from orrery.drivers.qemu.plan import VolumeFile
from orrery.drivers.qemu.records import guest_uid
from orrery.drivers.qemu.watcher import MachineWatcher
from orrery.errors import Cancelled, Failure
from orrery.metrics.ballooning import Ballooning
from orrery.model.devices import machine_devices, parse_nic
from orrery.model.disks import parse_disk
from orrery.model.guest import GuestConfig, GuestRecord
from orrery.store.guests import add_guest
from orrery.store.memory import MemoryStore
from orrery.system import cgroup, process
from orrery.system.host import Memory
from orrery.system.paths import Paths

pytestmark = [pytest.mark.root, pytest.mark.guest]
MIB = 1 << 20


@dataclass
class Guest:
    """A running machine with a Linux in it."""

    driver: QemuDriver
    config: GuestConfig
    folder: Path
    vmid: int = 100

    @property
    def pid(self) -> int:
        found = self.driver.find(self.vmid)
        assert found is not None
        return found.pid

    @property
    def agent(self) -> Agent:
        return self.driver.agent(self.vmid, self.config)

    def shell(self, command: str, seconds: float = 30.0) -> str:
        """Output of a command in the guest."""
        pid = self.agent.exec(["/bin/sh", "-c", command])["pid"]
        end = time.monotonic() + seconds
        while True:
            answer = self.agent.exec_status(pid)
            if answer["exited"]:
                return str(answer.get("out-data", "")).strip()
            assert time.monotonic() < end, f"not within {seconds} seconds: {command}"
            time.sleep(0.02)

    def volume(self, name: str, size: int = 8 * MIB) -> VolumeFile:
        path = qemu_lab.image(self.folder / name, size)
        return VolumeFile(path, path.suffix[1:])


def start(driver: QemuDriver, image: Path, folder: Path, text: str = qemu_lab.LINUX) -> Guest:
    config = GuestConfig.from_text(text)
    disk = qemu_lab.copy(image, folder / "vm-100-disk-0.qcow2")
    volumes = {"scsi0": VolumeFile(disk, "qcow2"), "virtio0": VolumeFile(disk, "qcow2")}
    with qemu_lab.taps(config) as taps:
        driver.launch(driver.plan(100, config, volumes, taps), lambda text: None)
    return Guest(driver, config, folder)


@pytest.fixture(scope="module", params=["i440fx", "q35"])
def guest(
    request: pytest.FixtureRequest, demo_image: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Guest]:
    """One machine for all tests that leave it as they found it, once on each chipset."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    folder = tmp_path_factory.mktemp(request.param)
    paths = Paths.of(folder / "root")
    paths.create()
    driver = QemuDriver(paths)
    text = qemu_lab.LINUX + ("machine: q35\n" if request.param == "q35" else "")
    guest = start(driver, demo_image, folder, text + "ide2: none,media=cdrom\n")
    try:
        qemu_lab.until("the agent answers", lambda: guest.agent.ping(1), 60)
        yield guest
    finally:
        driver.discard(100)
        cgroup.remove_root(paths.root_hash)


# --- where it runs


def test_the_machine_is_no_root_and_may_do_nothing(guest: Guest) -> None:
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{guest.pid}/status").read_text().splitlines() if ":\t" in line
    )
    uid = str(guest_uid(guest.driver.paths, 100))
    assert set(status["Uid"].split()) == {uid}
    assert set(status["Gid"].split()) == {uid}
    assert status["Groups"].strip() == ""
    assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == int(status["CapBnd"], 16) == 0
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"


def test_the_machine_sees_no_file_of_ours(guest: Guest) -> None:
    root = Path(f"/proc/{guest.pid}/root")
    assert not (root / "root").exists()
    assert not (root / "home").exists()
    assert not (root / "proc" / "1").exists()
    assert not (root / str(guest.folder).lstrip("/")).exists()
    assert {path.name for path in (root / "dev").iterdir()} <= {
        "fd",
        "full",
        "kvm",
        "null",
        "random",
        "urandom",
        "zero",
    }
    assert {path.name for path in (root / "etc").iterdir()} <= {
        *("alternatives", "group", "hosts", "ld.so.cache", "nsswitch.conf", "passwd"),
    }


def test_the_machine_has_no_network_but_its_taps(guest: Guest) -> None:
    links = Path(f"/proc/{guest.pid}/net/dev").read_text().splitlines()[2:]
    assert [line.split(":")[0].strip() for line in links] == ["lo"]
    sockets = Path(f"/proc/{guest.pid}/net/tcp").read_text().splitlines()[1:]
    assert sockets == []


def test_its_folder_and_sockets_are_roots_alone(guest: Guest) -> None:
    folder = guest.driver.folder(100)
    assert folder.stat().st_mode & 0o777 == 0o700
    for path in folder.iterdir():
        assert (path.stat().st_mode & 0o777, path.stat().st_uid) == (0o600, 0), path


# --- finding and asking


def test_a_new_driver_finds_the_machine(guest: Guest) -> None:
    other = QemuDriver(guest.driver.paths)
    assert other.running() == {100: other.find(100)}
    record = other.record(100)
    assert record is not None
    assert record.machine.startswith(("pc-q35-" if guest.config.get("machine") == "q35" else "pc-i440fx-",))
    assert other.status(100).running


def test_a_running_machine_is_not_started_twice(guest: Guest) -> None:
    plan = guest.driver.plan(100, GuestConfig.from_text("memory: 64\n"))
    with pytest.raises(Failure, match="VM 100 already running"):
        guest.driver.launch(plan, lambda text: None)
    with pytest.raises(Failure, match="VM 100 is running"):
        guest.driver.forget(100)


def test_pause_and_resume(guest: Guest) -> None:
    guest.driver.pause(100)
    assert guest.driver.status(100).state == "paused"
    guest.driver.resume(100)
    assert guest.driver.status(100).state == "running"


# --- the agent


def test_agent_tells_about_the_guest(guest: Guest) -> None:
    agent = guest.agent
    assert agent.command("ping") == {}
    assert agent.command("get-host-name")["host-name"]
    cards = {each["name"]: each for each in agent.command("network-get-interfaces")}
    assert cards["eth0"]["hardware-address"] == "bc:24:11:00:00:01"
    assert abs(agent.command("get-time") / 1e9 - time.time()) < 600
    assert any(each["name"] == "guest-exec" for each in agent.command("info")["supported_commands"])


def test_agent_runs_programs(guest: Guest) -> None:
    pid = guest.agent.exec(["/bin/sh", "-c", "cat; echo oops >&2; exit 3"], "grüße\n")["pid"]
    qemu_lab.until("the program ends", lambda: guest.agent.exec_status(pid)["exited"])
    # The agent forgets a program once it has told how it ended.
    with pytest.raises(Failure, match="Agent error"):
        guest.agent.exec_status(pid)
    with pytest.raises(Failure, match="Agent error"):
        guest.agent.exec(["/no/such/program"])


def test_agent_tells_output_and_exit_code(guest: Guest) -> None:
    pid = guest.agent.exec(["/bin/sh", "-c", "cat; echo oops >&2; exit 3"], "grüße\n")["pid"]
    answer: dict[str, object] = {"exited": 0}
    while not answer["exited"]:
        answer = guest.agent.exec_status(pid)
    expected = {"exited": 1, "exitcode": 3, "out-data": "grüße\n", "err-data": "oops\n"}
    assert {key: value for key, value in answer.items() if value != 0} == expected


def test_agent_writes_and_reads_files(guest: Guest) -> None:
    guest.agent.file_write("/tmp/x", "0123456789ä")
    assert guest.agent.file_read("/tmp/x") == {"content": "0123456789ä"}
    assert guest.agent.file_read("/tmp/x", count=4, offset=2) == {"content": "2345", "truncated": 1}
    guest.agent.file_write("/tmp/x", "/wD+", encode=False)
    assert guest.agent.file_read("/tmp/x", decode=False) == {"content": "/wD+"}
    with pytest.raises(Failure, match="Agent error"):
        guest.agent.file_read("/no/such/file")


def test_agent_reads_large_files_in_pieces(guest: Guest) -> None:
    guest.shell("dd if=/dev/zero bs=1M count=3 2>/dev/null | tr '\\0' x >/tmp/large")
    answer = guest.agent.file_read("/tmp/large")
    assert answer == {"content": "x" * (3 * MIB)}


# --- plugging


@pytest.mark.parametrize("key", ["scsi1", "virtio1"])
def test_disk_is_plugged_seen_grown_and_unplugged(guest: Guest, key: str) -> None:
    drive = parse_disk(key, "local:100/vm-100-disk-1.qcow2,iothread=1,serial=PLUG1,size=8M")
    volume = guest.volume(f"{key}.qcow2")
    device = "sdb" if key == "scsi1" else "vda"
    with guest.driver.live(100, guest.config) as machine:
        machine.plug_disk(drive, volume)
        assert key in machine.devices()
        assert machine.medium_path(key, guest.pid) == volume.path
    qemu_lab.until("the guest sees the disk", lambda: guest.shell("ls /sys/block").split().count(device))
    assert guest.shell(f"cat /sys/block/{device}/size") == str(8 * MIB // 512)
    guest.shell(f"echo MARK | dd of=/dev/{device} bs=512 count=1 conv=fsync,notrunc 2>/dev/null")
    with guest.driver.live(100, guest.config) as machine:
        machine.resize(key, 12 * MIB)
    if key == "scsi1":
        guest.shell(f"echo 1 >/sys/block/{device}/device/rescan")
    qemu_lab.until(
        "the guest sees the size", lambda: guest.shell(f"cat /sys/block/{device}/size") == str(12 * MIB // 512)
    )
    with guest.driver.live(100, guest.config) as machine:
        machine.unplug_disk(drive)
        assert key not in machine.devices()
        machine.unplug_disk(drive)
    qemu_lab.until("the guest loses the disk", lambda: device not in guest.shell("ls /sys/block").split())
    assert str(volume.path) not in open_files(guest.pid)
    raw = guest.folder / f"{key}.raw"
    process.run(["qemu-img", "convert", "-O", "raw", str(volume.path), str(raw)], timeout=30)
    assert raw.read_bytes().startswith(b"MARK")
    assert raw.stat().st_size == 12 * MIB


def open_files(pid: int) -> set[str]:
    found = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.add(str(entry.readlink()))
    return {name for name in found if name.startswith("/")}


def test_a_disk_that_cannot_be_plugged_leaves_nothing(guest: Guest) -> None:
    volume = guest.volume("bad.qcow2")
    before = open_files(guest.pid)
    with guest.driver.live(100, guest.config) as machine:
        with pytest.raises(Failure, match="does not support hotplugging"):
            machine.plug_disk(parse_disk("ide1", "local:100/vm-100-disk-2.qcow2"), volume)
        with pytest.raises(Failure, match="exclude each other"):
            machine.plug_disk(parse_disk("virtio2", "local:100/vm-100-disk-2.qcow2,mbps=1,mbps_rd=1"), volume)
        assert not {"ide1", "virtio2"} & machine.devices()
    qemu_lab.until("QEMU closes what it did not need", lambda: open_files(guest.pid) == before)


def test_an_image_that_is_none_is_refused(guest: Guest) -> None:
    path = guest.folder / "none.qcow2"
    path.write_bytes(b"x" * 4096)
    with guest.driver.live(100, guest.config) as machine, pytest.raises(Failure, match="not a qcow2 image"):
        machine.plug_disk(parse_disk("scsi2", "local:100/x.qcow2"), VolumeFile(path, "qcow2"))


def test_card_is_plugged_pulled_and_unplugged(guest: Guest) -> None:
    card = parse_nic("virtio=BC:24:11:00:00:07,bridge=lab0", 1)
    tap = qemu_lab.open_tap("lab1")
    with guest.driver.live(100, guest.config) as machine:
        machine.plug_nic(card, tap)
    os.close(tap.fds[0])
    qemu_lab.until("the guest sees the card", lambda: "eth1" in guest.shell("ls /sys/class/net"))
    assert guest.shell("cat /sys/class/net/eth1/address") == "bc:24:11:00:00:07"
    guest.shell("ip link set eth1 up")
    qemu_lab.until("the cable is in", lambda: guest.shell("cat /sys/class/net/eth1/carrier") == "1")
    with guest.driver.live(100, guest.config) as machine:
        machine.set_link(parse_nic("virtio=BC:24:11:00:00:07,bridge=lab0,link_down=1", 1))
    qemu_lab.until("the cable is out", lambda: guest.shell("cat /sys/class/net/eth1/carrier") == "0")
    with guest.driver.live(100, guest.config) as machine:
        machine.unplug_nic(card)
        machine.unplug_nic(card)
    qemu_lab.until("the guest loses the card", lambda: "eth1" not in guest.shell("ls /sys/class/net"))


def test_medium_is_changed_and_ejected(guest: Guest) -> None:
    iso = guest.folder / "a.iso"
    iso.write_bytes(b"A" * 2 * MIB)
    other = guest.folder / "b.iso"
    other.write_bytes(b"B" * 3 * MIB)
    drive = parse_disk("ide2", "none,media=cdrom")
    with guest.driver.live(100, guest.config) as machine:
        for path in (iso, other):
            machine.change_medium(drive, VolumeFile(path, "raw", read_only=True))
            assert machine.medium_path("ide2", guest.pid) == path
        assert str(iso) not in open_files(guest.pid)
        machine.change_medium(drive, None)
        assert machine.node_of("ide2") is None
        machine.change_medium(drive, None)
    assert str(other) not in open_files(guest.pid)


def test_a_medium_that_cannot_be_inserted_leaves_the_old_one(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    iso, other = guest.folder / "old.iso", guest.folder / "new.iso"
    iso.write_bytes(b"A" * 2 * MIB)
    other.write_bytes(b"B" * 3 * MIB)
    drive = parse_disk("ide2", "none,media=cdrom")

    def refuse(monitor: Monitor, command: str, arguments: Any = None, **more: Any) -> Any:
        if command == "blockdev-insert-medium" and not refused:
            refused.append(command)
            raise Failure("not this one")
        return execute(monitor, command, arguments, **more)

    execute, refused = Monitor.execute, list[str]()
    missing = VolumeFile(guest.folder / "missing.iso", "raw", read_only=True)
    with guest.driver.live(100, guest.config) as machine:
        machine.change_medium(drive, VolumeFile(iso, "raw", read_only=True))
        with pytest.raises(Failure, match="unable to open"):
            machine.change_medium(drive, missing)
        assert machine.medium_path("ide2", guest.pid) == iso
        monkeypatch.setattr(Monitor, "execute", refuse)
        with pytest.raises(Failure, match="not this one"):
            machine.change_medium(drive, VolumeFile(other, "raw", read_only=True))
        assert machine.medium_path("ide2", guest.pid) == iso
        assert str(other) not in open_files(guest.pid)
    with guest.driver.monitor(100) as monitor:
        drives = {each["qdev"]: each for each in monitor.execute("query-block") if each.get("qdev")}
        assert not drives["ide2"]["tray_open"]
    with guest.driver.live(100, guest.config) as machine:
        machine.change_medium(drive, None)
    assert str(iso) not in open_files(guest.pid)


def test_rates_hold_and_are_lifted(guest: Guest) -> None:
    with guest.driver.live(100, guest.config) as machine:
        machine.set_throttle(parse_disk("scsi0", "local:100/x.qcow2,mbps=2"))
    slow = read_seconds(guest)
    with guest.driver.live(100, guest.config) as machine:
        machine.set_throttle(parse_disk("scsi0", "local:100/x.qcow2"))
    fast = read_seconds(guest)
    assert slow > 1.5
    assert fast < slow / 2


def read_seconds(guest: Guest) -> float:
    text = guest.shell(
        "cut -d' ' -f1 /proc/uptime; dd if=/dev/sda of=/dev/null bs=1M count=6 iflag=direct 2>/dev/null;"
        " cut -d' ' -f1 /proc/uptime",
    )
    first, last = text.split()
    return float(last) - float(first)


def test_balloon_takes_memory_and_gives_it_back(guest: Guest) -> None:
    def total() -> int:
        return int(guest.shell("grep MemTotal /proc/meminfo").split()[1]) >> 10

    full = total()
    with guest.driver.live(100, guest.config) as machine:
        machine.set_balloon(96)
    qemu_lab.until("the guest has less memory", lambda: total() <= full - 24)
    with guest.driver.live(100, guest.config) as machine:
        machine.set_balloon(128)
    qemu_lab.until("the guest has its memory again", lambda: total() >= full - 4)


def test_the_guest_gives_memory_to_a_host_that_runs_short(guest: Guest) -> None:
    watcher = MachineWatcher(guest.driver.paths, lambda event: None, interval=0.1)
    reports = SimpleNamespace(samples=lambda: dict(watcher.samples), set_balloon=watcher.set_balloon)
    store = MemoryStore()
    config = guest.config.with_options({"balloon": "96"})
    add_guest(store, GuestRecord(100, "qemu", "lab", config))
    free = 0
    ballooning = Ballooning(store, reports, lambda: Memory(1000 * MIB, free, free, 0, 0))

    def has(mebibytes: int) -> bool:
        ballooning.step()
        return watcher.samples[100].balloon == mebibytes * MIB

    watcher.start()
    try:
        qemu_lab.until(
            "the guest tells of its memory", lambda: 100 in watcher.samples and watcher.samples[100].heard, 60
        )
        qemu_lab.until("the guest gives what it can", lambda: has(96), 60)
        free = 900 * MIB
        qemu_lab.until("the guest has its memory again", lambda: has(128), 60)
    finally:
        watcher.stop()
    with pytest.raises(Failure, match="does not listen"):
        watcher.set_balloon(100, 96 * MIB)


def test_bounds_of_the_balloon_are_kept(guest: Guest) -> None:
    def has(mebibytes: int) -> bool:
        with guest.driver.monitor(100) as monitor:
            return bool(monitor.execute("query-balloon")["actual"] == mebibytes * MIB)

    def fit(**options: str) -> None:
        with guest.driver.live(100, guest.config) as machine:
            machine.fit_balloon(machine_devices(guest.config.with_options(options)))

    fit(balloon="96")
    assert has(128)  # the host is not short, and who has shares gives nothing else
    fit(balloon="96", shares="0")
    qemu_lab.until("without shares it has the least", lambda: has(96))
    fit(balloon="112")
    qemu_lab.until("it has no less than the least", lambda: has(112))
    fit()
    qemu_lab.until("all is its own", lambda: has(128))


# --- moving a disk


def test_disk_moves_while_the_guest_writes(guest: Guest) -> None:
    drive = parse_disk("virtio3", "local:100/vm-100-disk-3.raw,size=16M")
    source = guest.volume("move.raw", 16 * MIB)
    target = guest.volume("move.qcow2", 16 * MIB)
    with guest.driver.live(100, guest.config) as machine:
        machine.plug_disk(drive, source)
    qemu_lab.until("the guest sees the disk", lambda: "vda" in guest.shell("ls /sys/block"))
    guest.shell("dd if=/dev/urandom of=/dev/vda bs=1M count=6 conv=fsync 2>/dev/null")
    before = guest.shell("sha1sum /dev/vda", 60)
    seen: list[tuple[int, int]] = []
    with guest.driver.jobs(100, guest.config) as jobs:
        jobs.move_disk(drive, target, lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1] > 0
    with guest.driver.live(100, guest.config) as machine:
        assert machine.medium_path("virtio3", guest.pid) == target.path
        assert str(source.path) not in open_files(guest.pid)
    assert guest.shell("sha1sum /dev/vda", 60) == before
    guest.shell("echo LATER | dd of=/dev/vda bs=512 count=1 conv=fsync,notrunc 2>/dev/null")
    with guest.driver.jobs(100, guest.config) as jobs:  # and back again, past the name that is free now
        jobs.move_disk(drive, source, lambda done, total: None)
    with guest.driver.live(100, guest.config) as machine:
        assert machine.medium_path("virtio3", guest.pid) == source.path
        machine.unplug_disk(drive)
    assert source.path.read_bytes()[:5] == b"LATER"


def test_cancelled_move_leaves_the_machine_as_it_was(guest: Guest) -> None:
    drive = parse_disk("virtio4", "local:100/vm-100-disk-4.raw,size=64M")
    source = guest.volume("cancel.raw", 64 * MIB)
    source.path.write_bytes(os.urandom(64 * MIB))
    target = guest.volume("cancel.qcow2", 64 * MIB)
    with guest.driver.live(100, guest.config) as machine:
        machine.plug_disk(drive, source)

    def cancel(done: int, total: int) -> None:
        if done:
            raise Cancelled

    with guest.driver.jobs(100, guest.config) as jobs:
        with pytest.raises(Cancelled):
            jobs.move_disk(drive, target, cancel, speed=4 * MIB)
        jobs.abandon("virtio4")
    assert str(target.path) not in open_files(guest.pid)
    with guest.driver.live(100, guest.config) as machine:
        assert machine.medium_path("virtio4", guest.pid) == source.path
        machine.unplug_disk(drive)


def test_a_move_whose_mover_died_is_undone_by_another(guest: Guest) -> None:
    drive = parse_disk("virtio5", "local:100/vm-100-disk-5.raw,size=64M")
    source = guest.volume("dead.raw", 64 * MIB)
    source.path.write_bytes(os.urandom(64 * MIB))
    target = guest.volume("dead.qcow2", 64 * MIB)
    with guest.driver.live(100, guest.config) as machine:
        machine.plug_disk(drive, source)
    child = os.fork()
    if child == 0:
        with guest.driver.jobs(100, guest.config) as jobs:
            jobs.move_disk(drive, target, lambda done, total: None, speed=MIB)
        os._exit(0)
    qemu_lab.until("the copy has begun", lambda: str(target.path) in open_files(guest.pid))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with guest.driver.jobs(100, guest.config) as jobs:
        jobs.abandon("virtio5")
    assert str(target.path) not in open_files(guest.pid)
    with guest.driver.live(100, guest.config) as machine:
        machine.unplug_disk(drive)
