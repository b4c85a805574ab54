# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a host can lack: descriptors, a disk that can be written to, room on it; and what strangers can take from it."""

import contextlib
import json
import os
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.node.client import ApiError, TaskFailed
from tests.node.harness import PASSWORD, Node, eventually

STRANGERS = 3000
TICKS = os.sysconf("SC_CLK_TCK")


def events(node: Node, name: str) -> int:
    """How often the daemon's log says so."""
    lines = node.paths.daemon_log.read_text().splitlines()
    return sum(json.loads(line)["event"] == name for line in lines)


def works(node: Node) -> None:
    """A machine can be created, started, stopped and destroyed."""
    guest = node.guest(start=True)
    assert guest.status()["status"] == "running"
    guest.destroy()
    assert node.locks() == []


# --- descriptors


def test_too_few_descriptors_are_refused(node_root: Node) -> None:
    with pytest.raises(AssertionError, match=r"needs 256 open files, and may have only 64 here"):
        node_root.init().serve(within=["prlimit", "--nofile=64:64"])
    assert not node_root.stragglers()


def test_a_low_limit_is_raised_as_far_as_it_may(node_root: Node) -> None:
    node_root.init().serve(within=["prlimit", "--nofile=256:4096"])
    assert node_root.serving is not None
    limits = Path(f"/proc/{node_root.serving.pid}/limits").read_text()
    assert next(line.split()[3] for line in limits.splitlines() if line.startswith("Max open files")) == "4096"


def test_when_descriptors_run_out_connections_wait(node_root: Node) -> None:
    node = node_root.init().serve(within=["prlimit", "--nofile=256:256"])
    assert node.serving is not None
    process = Path(f"/proc/{node.serving.pid}")

    def cpu() -> float:
        return sum(map(int, (process / "stat").read_text().rpartition(")")[2].split()[11:13])) / TICKS

    with contextlib.ExitStack() as stack:
        folder = os.open(node.paths.local_sock.parent, os.O_PATH)
        stack.callback(os.close, folder)
        for _ in range(300):
            connection = stack.enter_context(socket.socket(socket.AF_UNIX))
            connection.connect(f"/proc/self/fd/{folder}/{node.paths.local_sock.name}")
        eventually(lambda: events(node, "connections have to wait"), what="the complaint")
        before, begun = cpu(), time.monotonic()
        time.sleep(2)
        assert cpu() - before < (time.monotonic() - begun) / 2, "it waits, and does not try without end"
        assert events(node, "connections have to wait") == 1
    works(node)


# --- a disk that cannot be written to, or is full


@pytest.fixture
def disk(node_root: Node, tmp_path: Path) -> Iterator[Path]:
    """The node's root is a file system of its own, of 256 MiB."""
    root, image = node_root.folder, tmp_path / "disk"
    root.mkdir()
    with image.open("wb") as file:
        file.truncate(256 << 20)
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, root], check=True)
    try:
        yield root
    finally:
        node_root.destroy()
        subprocess.run(["umount", "--lazy", root], check=True)


def test_a_disk_that_turns_read_only(node_root: Node, disk: Path) -> None:
    """As the kernel does it with a file system that it finds damaged."""
    node = node_root.init().serve()
    running, other = node.guest(start=True), node.guest()
    subprocess.run(["mount", "-o", "remount,abort", disk], check=True)
    changes: list[tuple[str, str, dict[str, Any]]] = [
        ("PUT", f"{other.path}/config", {"description": "x"}),
        ("POST", f"{other.path}/status/start", {}),
        ("POST", f"{node.path}/qemu", {"vmid": 990, "scsi0": "local:0.03125"}),
        ("POST", "/access/groups", {"groupid": "x"}),
    ]
    for verb, path, parameters in changes:
        answer = node.root.send(verb, path, parameters)
        assert answer.status_code == 500, path
        assert "ead-only" in answer.text, path
        assert "internal error" not in answer.text, path
    where = f"/api2/json{node.path}/storage/local/upload"
    answer = node.root.http.post(where, data={"content": "iso"}, files={"filename": ("x.iso", bytes(1 << 16))})
    assert "ead-only" in answer.text
    assert node.root.get("/version")
    assert running.status()["qmpstatus"] == "running"
    assert other.status()["status"] == "stopped"


def fill(disk: Path) -> Path:
    """Takes all room; the file that has it."""
    filler = disk / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 12))
    return filler


def test_a_full_disk_at_the_start(node_root: Node, disk: Path) -> None:
    node = node_root.init().serve()
    guest = node.guest(start=True)
    pid = guest.pid()
    node.end()
    filler = fill(disk)
    done = node.cli("serve", "--listen", "127.0.0.1:8106", check=False, timeout=30)
    assert done.returncode == 14
    assert "no space left" in done.stderr
    assert "Traceback" not in done.stderr
    filler.unlink()
    node.serve()
    assert guest.pid() == pid
    works(node)


def test_a_disk_that_fills_up(node_root: Node, disk: Path) -> None:
    node = node_root.init().serve()
    guest = node.guest(start=True)
    filler = fill(disk)
    for _ in range(3):  # what a log or database has reserved may still be used up
        with contextlib.suppress(ApiError, TaskFailed):
            guest.set(description="x" * 8000)
    with pytest.raises((ApiError, TaskFailed)) as caught:
        guest.set(description="y" * 8000)
    assert "space" in str(caught.value)
    assert guest.status()["qmpstatus"] == "running"
    filler.unlink()
    works(node)
    guest.set(description="z")
    assert guest.config()["description"].strip() == "z"


# --- strangers


def test_thousands_of_connections_keep_nobody_out(node: Node) -> None:
    """From one address, and saying nothing: they wait for the end of a header that never comes."""
    context = ssl.create_default_context(cafile=node.paths.tls_cert)
    context.check_hostname = False
    silent: list[socket.socket] = []
    with contextlib.ExitStack() as stack:
        for number in range(STRANGERS):
            stranger = stack.enter_context(socket.socket())
            stranger.bind(("127.0.0.2", 0))
            stranger.settimeout(10)
            stranger.connect(("127.0.0.1", node.port))
            if number % 30 == 0:
                silent.append(stack.enter_context(context.wrap_socket(stranger)))
        client = node.anonymous().log_in("admin@pve", PASSWORD)
        assert client.get("/version")
        client.close()
        assert len(silent) == STRANGERS // 30
    assert node.api.get("/version")


# --- a clock that jumps

JUMPING = """
import time
real = time.time
def jumped():
    with open({file!r}) as file:
        return real() + float(file.read())
time.time = jumped
"""
DAY = 86400


def test_the_clock_jumps_by_a_day_and_back(node_root: Node, tmp_path: Path) -> None:
    """Logins do not survive it, everything else does: guests, tokens, tasks, their order and their logs."""
    offset, folder = tmp_path / "offset", tmp_path / "fake"
    offset.write_text("0")
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(JUMPING.format(file=str(offset)))
    path = f"{folder}:{os.environ.get('PYTHONPATH', '')}"
    node = node_root.init().serve({"PYTHONPATH": path})
    guest = node.guest(start=True)
    token = node.root.post("/access/users/root@pam/token/test", privsep=0)
    with_token = node.anonymous()
    with_token.http.headers["Authorization"] = f"PVEAPIToken={token['full-tokenid']}={token['value']}"
    before = node.anonymous().log_in("admin@pve", PASSWORD)
    logins = []
    for jump in (DAY, 0):
        offset.write_text(str(jump))
        logins.append(node.anonymous().log_in("admin@pve", PASSWORD))
        assert logins[-1].get("/nodes")
        assert before.send("GET", "/nodes").status_code == 401, "over, and with it the key that signed it"
        assert with_token.get("/nodes")
        other = node.root.post(f"{node.path}/qemu", vmid=900 + bool(jump), memory=32)
        node.root.wait(other)
        for verb in ("start", "stop"):
            node.root.wait(node.root.post(f"{node.path}/qemu/{900 + bool(jump)}/status/{verb}"))
        assert 0 <= node.root.get(f"{guest.path}/status/current")["uptime"] < DAY
    assert logins[0].send("GET", "/nodes").status_code == 401, "a login from the future is not believed"
    tasks = node.root.get(f"{node.path}/tasks")
    assert [task["type"] for task in tasks if task["id"] == "901"] == ["qmstop", "qmstart", "qmcreate"]
    assert {"900", "901"} <= {task["id"] for task in tasks}
    assert {task["status"] for task in tasks} == {"OK"}
    assert node.locks() == []
    for client in (before, *logins, with_token):
        client.close()
