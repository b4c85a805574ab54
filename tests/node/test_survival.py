# SPDX-License-Identifier: AGPL-3.0-or-later
"""Guests outlive the daemon, however it ends, and the next one finds them."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
from tests.node.harness import Guest, Node, eventually

from orrery.system import process

pytestmark = pytest.mark.guest


def pings(address: str) -> bool:
    return subprocess.run(["ping", "-c", "1", "-W", "5", address], capture_output=True, check=False).returncode == 0


@pytest.mark.timeout(300)
def test_a_guest_outlives_the_daemon(fresh_node: Node, demo_image: object) -> None:
    node = fresh_node
    guest = node.guest(disk=node.import_demo(demo_image), start=True)  # type: ignore[arg-type]
    address, pid = guest.address(), guest.pid()
    boot = guest.inside("cat", "/proc/sys/kernel/random/boot_id")
    for number in (signal.SIGINT, signal.SIGKILL, signal.SIGTERM):
        node.end(number)
        assert node.machines() == [guest.vmid]
        assert pings(address)
        node.serve()
        assert guest.status()["status"] == "running"
        assert guest.status()["qmpstatus"] == "running"
        assert guest.pid() == pid
        assert guest.inside("cat", "/proc/sys/kernel/random/boot_id") == boot
    guest.set(virtio1="local:0.0625")
    eventually(lambda: "vdb" in guest.inside("ls", "/sys/block"), 10, "a disk that the new daemon plugged")
    guest.run("shutdown", timeout=60)
    assert node.machines() == []


def test_a_guest_that_ended_while_nobody_looked(fresh_node: Node) -> None:
    guest = fresh_node.guest(start=True, net0="virtio,bridge=vmbr0")
    pid = guest.pid()
    fresh_node.end(signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)
    fresh_node.serve()
    assert guest.status()["status"] == "stopped"
    eventually(lambda: not fresh_node.paths.guest_run(guest.vmid).exists(), 10, "tidying up")
    assert not fresh_node.taps()
    assert not fresh_node.groups()
    guest.run("start")
    assert guest.status()["status"] == "running"


def test_another_process_with_the_pid_of_a_dead_guest_is_not_taken_for_it(fresh_node: Node) -> None:
    guest = fresh_node.guest(start=True)
    record = fresh_node.paths.guest_run(guest.vmid) / "process.json"
    kept = record.read_bytes()
    guest.run("stop")
    record.parent.mkdir(mode=0o700)
    stranger = subprocess.Popen(["sleep", "60"])
    known = process.identity(stranger.pid)
    assert known is not None
    start = str(known.start).encode()
    record.write_bytes(kept.replace(str(guest_pid(kept)).encode(), str(stranger.pid).encode()))
    assert start not in record.read_bytes()
    fresh_node.restart()
    assert guest.status()["status"] == "stopped"
    guest.run("stop")
    assert stranger.poll() is None
    stranger.kill()
    stranger.wait()


def guest_pid(record: bytes) -> int:
    return int(json.loads(record)["process"]["pid"])


def test_the_zygote_is_started_again(fresh_node: Node) -> None:
    guest = fresh_node.guest()
    for _ in range(2):
        for pid in zygotes(fresh_node):
            os.kill(pid, signal.SIGKILL)
        eventually(lambda: zygotes(fresh_node), 10, "another zygote")
        eventually(lambda: starts(guest), 20, "a start by the new zygote")
        guest.run("stop")


def zygotes(node: Node) -> list[int]:
    assert node.serving is not None
    children = Path(f"/proc/{node.serving.pid}/task").glob("*/children")
    pids = [int(pid) for file in children for pid in file.read_text().split()]
    return [pid for pid in pids if "zygote" in Path(f"/proc/{pid}/comm").read_text()]


def starts(guest: Guest) -> bool:
    """Whether the machine starts; a request while no zygote is ready is refused, not lost."""
    response = guest.api.send("POST", f"{guest.path}/status/start")
    if response.status_code != 200:
        return False
    guest.api.wait(response.json()["data"])
    return True


def test_guests_that_are_to_start_with_the_host_do_so_once_per_boot(fresh_node: Node) -> None:
    first = fresh_node.guest(onboot=1, startup="order=2")
    second = fresh_node.guest(onboot=1, startup="order=1")
    fresh_node.guest()
    fresh_node.restart()
    assert fresh_node.machines() == []
    fresh_node.end()
    fresh_node.paths.boot_file.unlink()
    fresh_node.serve()
    eventually(lambda: fresh_node.machines() == [first.vmid, second.vmid], 30, "both guests")
    tasks = fresh_node.api.get(f"{fresh_node.path}/tasks", typefilter="qmstart", source="all")
    assert [task["id"] for task in reversed(tasks)] == [str(second.vmid), str(first.vmid)]
    assert {task["user"] for task in tasks} == {"root@pam"}
