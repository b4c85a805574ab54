# SPDX-License-Identifier: AGPL-3.0-or-later
"""What goes wrong outside: full disks, a QEMU that is missing, dies or hangs, damaged files, a second daemon."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.node.client import ApiError, TaskFailed
from tests.node.harness import PASSWORD, Guest, Node, eventually

from orrery.access.tickets import Tickets

MIB = 1 << 20
SMALL = 24 * MIB


# --- full disks


@pytest.fixture
def small(node: Node, tmp_path: Path) -> Iterator[Path]:
    """The storage `small` on a file system of 24 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SMALL}", "small", folder], check=True)
    node.root.post("/storage", {"path": str(folder)}, storage="small", type="dir", content="images,iso,import")
    yield folder
    node.root.delete("/storage/small")
    subprocess.run(["umount", folder], check=True)


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def used(folder: Path) -> int:
    """Bytes in use, as the file system counts them: files without a name count too."""
    return shutil.disk_usage(folder).used


def test_importing_into_a_full_storage_leaves_nothing(node: Node, small: Path, demo_volume: str) -> None:
    vmid = node.next_vmid()
    node.root.get(f"{node.path}/storage/small/status")
    before = used(small)
    wanted = {"vmid": vmid, "scsi0": "local:0.0625", "virtio0": f"small:0,import-from={demo_volume}"}
    with pytest.raises((TaskFailed, ApiError)) as caught:
        node.api.wait(node.api.post(f"{node.path}/qemu", wanted))
    assert "space" in str(caught.value)
    assert files(small) == []
    assert used(small) == before
    assert not [name for name in node.images() if name.startswith(f"{vmid}/")]
    assert vmid not in [row["vmid"] for row in node.api.get(f"{node.path}/qemu")]
    assert node.locks() == []


def test_adding_a_disk_on_a_full_storage_changes_nothing(node: Node, small: Path, demo_volume: str) -> None:
    guest = node.guest()
    before = guest.config()
    with pytest.raises((TaskFailed, ApiError)):
        guest.set(virtio0=f"small:0,import-from={demo_volume}")
    assert guest.config() == before
    assert files(small) == []
    guest.destroy()


def test_moving_to_a_full_storage_changes_nothing(node: Node, small: Path, demo_volume: str) -> None:
    guest = node.guest(disk=demo_volume)
    before = guest.config()
    move = f"{guest.path}/move_disk"
    with pytest.raises((TaskFailed, ApiError)):
        guest.api.wait(guest.api.post(move, disk="virtio0", storage="small", delete=1))
    assert guest.config() == before
    assert files(small) == []
    guest.destroy()


def test_uploading_to_a_full_storage_leaves_nothing(node: Node, small: Path) -> None:
    before = used(small)
    where = f"/api2/json{node.path}/storage/small/upload"
    content = b"\0" * 0x8001 + b"CD001" + bytes(40 * MIB)
    response = node.root.http.post(where, data={"content": "iso"}, files={"filename": ("big.iso", content)})
    if response.status_code == 200:
        with pytest.raises(TaskFailed):
            node.root.wait(response.json()["data"])
    assert files(small) == []
    assert used(small) == before
    assert node.root.get(f"{node.path}/storage/small/content") == []


# --- QEMU


OVERLAY = """
mount -t tmpfs overlay "$1"
mkdir "$1/upper" "$1/work"
mount -t overlay -o "lowerdir=/usr/bin,upperdir=$1/upper,workdir=$1/work" overlay /usr/bin
rm /usr/bin/qemu-system-x86_64
shift
exec "$@"
"""


def test_a_host_without_qemu(node_root: Node, tmp_path: Path) -> None:
    node = node_root.init()
    folder = tmp_path / "overlay"
    folder.mkdir()
    node.serve(within=["unshare", "--mount", "sh", "-ec", OVERLAY, "sh", str(folder)])
    with pytest.raises((ApiError, TaskFailed)) as caught:
        node.guest()
    assert "'qemu-system-x86_64' is not installed" in str(caught.value)
    assert node.api.get(f"{node.path}/qemu") == []
    node.restart()
    guest = node.guest(start=True)
    assert guest.status()["status"] == "running"
    node.end()
    node.serve(within=["unshare", "--mount", "sh", "-ec", OVERLAY, "sh", str(folder)])
    assert guest.status()["qmpstatus"] == "running"
    guest.run("stop")
    with pytest.raises((ApiError, TaskFailed)) as caught:
        guest.run("start")
    assert "'qemu-system-x86_64' is not installed" in str(caught.value)


def test_what_qemu_says_when_it_dies_at_start_is_in_the_log(node: Node) -> None:
    guest = node.guest(memory=1 << 22, net0="virtio,bridge=vmbr0")
    with pytest.raises(TaskFailed) as caught:
        guest.run("start")
    assert "start failed: QEMU ended at once" in caught.value.exitstatus
    assert "cannot set up guest memory" in caught.value.exitstatus
    assert caught.value.log[-1] == f"TASK ERROR: {caught.value.exitstatus}"
    assert guest.status()["status"] == "stopped"
    assert not node.paths.guest_run(guest.vmid).exists()
    assert guest.vmid not in node.machines()
    guest.set(memory=96)
    guest.run("start")
    guest.destroy()


def test_a_qemu_that_is_killed(node: Node) -> None:
    guest = node.guest(start=True, net0="virtio,bridge=vmbr0")
    taps = node.taps()
    os.kill(guest.pid(), signal.SIGKILL)
    eventually(lambda: guest.status()["status"] == "stopped", 5)
    eventually(lambda: not node.paths.guest_run(guest.vmid).exists(), 10)
    assert len(node.taps()) == len(taps) - 1
    guest.run("start")
    guest.destroy()


@pytest.fixture
def wedged(node: Node) -> Iterator[Guest]:
    """A machine whose QEMU answers nobody any more."""
    guest = node.guest(start=True, agent=1, net0="virtio,bridge=vmbr0")
    os.kill(guest.pid(), signal.SIGSTOP)
    yield guest
    guest.destroy()


def test_a_wedged_machine_can_be_looked_at(wedged: Guest) -> None:
    begun = time.monotonic()
    status = wedged.status()
    assert time.monotonic() - begun < 5
    assert status["status"] == "running"
    assert status["qmpstatus"] == "unknown"
    begun = time.monotonic()
    for _ in range(20):
        rows = wedged.api.get(f"{wedged.node.path}/qemu", full=1)
        assert next(row for row in rows if row["vmid"] == wedged.vmid)["status"] == "running"
        wedged.api.get("/cluster/resources")
        wedged.config()
    assert time.monotonic() - begun < 5, "lists do not wait for machines"


def test_a_wedged_machine_can_be_stopped(wedged: Guest) -> None:
    begun = time.monotonic()
    wedged.run("stop")
    assert time.monotonic() - begun < 20
    assert wedged.status()["status"] == "stopped"
    assert wedged.vmid not in wedged.node.machines()
    assert not wedged.node.paths.guest_run(wedged.vmid).exists()


def test_a_wedged_machine_is_shut_down_by_force(wedged: Guest) -> None:
    wedged.run("shutdown", timeout=2, forceStop=1)
    assert wedged.status()["status"] == "stopped"


def test_changing_a_wedged_machine_leaves_the_change_pending(wedged: Guest) -> None:
    upid = wedged.api.post(f"{wedged.path}/config", net1="virtio,bridge=vmbr0", name="still-stored")
    assert wedged.api.ended(upid) == "WARNINGS: 1"
    assert wedged.config(current=1)["name"] == "still-stored"
    assert "net1" in wedged.config()
    assert "net1" not in wedged.config(current=1)


# --- damaged files


DAMAGES = {
    "store.db": ("lib/store.db", "store"),
    "tasks.db": ("lib/tasks.db", "journal"),
    "node.json": ("etc/node.json", "node.json"),
}


@pytest.mark.parametrize("name", sorted(DAMAGES))
def test_a_damaged_file_is_refused_and_left_alone(node_root: Node, name: str) -> None:
    node = node_root.init()
    node.serve()
    node.end(signal.SIGTERM)
    path = node.folder / DAMAGES[name][0]
    for neighbour in path.parent.glob(f"{path.name}-*"):
        neighbour.unlink()
    whole = path.read_bytes()
    for broken in (b"not what it was" + whole[15:], b""):
        path.write_bytes(broken)
        done = node.cli("serve", "--listen", "127.0.0.1:8106", check=False, timeout=30)
        assert done.returncode == 13
        assert str(path) in done.stderr
        assert DAMAGES[name][1] in done.stderr
        assert "Traceback" not in done.stderr
        assert len(done.stderr) > len(str(path)) + 60, "it says what to do"
        assert path.read_bytes() == broken
    path.write_bytes(whole)
    node.serve()
    assert node.api.get("/version")


# --- a second daemon, the address, the clock


def test_a_second_daemon_on_the_same_root_is_refused(fresh_node: Node) -> None:
    done = fresh_node.cli("serve", "--listen", "127.0.0.1:8107", check=False, timeout=30)
    assert done.returncode != 0
    assert "another `orrery serve` runs on this root" in done.stderr
    assert fresh_node.api.get("/version")


def test_a_taken_address_is_told(node: Node, node_root: Node) -> None:
    done = node_root.init().cli("serve", "--listen", f"127.0.0.1:{node.port}", check=False, timeout=30)
    assert done.returncode != 0
    assert f"127.0.0.1:{node.port}" in done.stderr
    assert "Traceback" not in done.stderr
    assert not node_root.stragglers(tasks_only=True)


def test_tickets_and_the_clock(node: Node, tmp_path: Path) -> None:
    """A clock that was set back makes tickets ones from the future, which are not believed."""
    keys = shutil.copytree(node.paths.keys, tmp_path / "keys")
    for shift, status in ((0, 200), (200, 200), (400, 401)):
        tickets = Tickets(keys, clock=lambda shift=shift: time.time() + shift)  # type: ignore[misc]
        client = node.anonymous()
        client.http.headers["Cookie"] = f"PVEAuthCookie={tickets.issue('PVE', 'admin@pve')}"
        assert client.send("GET", "/nodes").status_code == status, shift
        client.close()
    client = node.anonymous().log_in("admin@pve", PASSWORD)
    assert client.get("/nodes")
    client.close()


def test_a_login_outlives_the_daemon(fresh_node: Node) -> None:
    cookie = fresh_node.api.http.headers["Cookie"]
    fresh_node.restart(signal.SIGKILL)
    client = fresh_node.anonymous()
    client.http.headers["Cookie"] = cookie
    assert client.get("/nodes")
    client.close()
