# SPDX-License-Identifier: AGPL-3.0-or-later
"""Moving a disk is killed at every transition, on a machine that runs and on one that does not.

Afterwards the disk has its contents, the machine uses what its configuration names, and every image on the storage is
named by it: nothing is lost and nothing is left over.
"""

import hashlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.node.harness import Guest, Node
from tests.node.test_kills import Stage, Stopped

from orrery.tasks.faultstop import VARIABLE

VMID = 300
SIZE = 32 << 20


@pytest.fixture(scope="module")
def stage(node: Node, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("moves")
    with Node(folder / "node", port=8306) as made:
        file = folder / "stop"
        made.init().serve({VARIABLE: str(file)})
        yield Stage(made, made.guest(vmid=VMID), file)


def new_disk(guest: Guest) -> str:
    """Gives the machine a fresh raw disk with contents; their digest."""
    for key in [key for key in guest.config() if key.startswith(("scsi", "unused")) and key != "scsihw"]:
        guest.set({"delete": key, "force": 1})
    guest.set(scsi0=f"local:{SIZE / (1 << 30)}")
    image = guest.node.paths.local_storage / "images" / guest.config()["scsi0"].split(",")[0].partition(":")[2]
    with image.open("r+b") as stream:
        stream.seek(1 << 20)
        stream.write(os.urandom(4 << 20))
    return digest(image)


def digest(image: Path) -> str:
    """Of what a guest would read."""
    plain = image.with_suffix(".plain")
    subprocess.run(["qemu-img", "convert", "-U", "-O", "raw", image, plain], check=True)
    found = hashlib.sha256(plain.read_bytes()).hexdigest()
    plain.unlink()
    return found


def check(stage: Stage, guest: Guest, contents: str, *, runs: bool) -> str:
    """Everything fits; the format in which the disk is now."""
    node = stage.node
    assert node.locks() == []
    config = node.root.get(f"{guest.path}/config")
    assert "lock" not in config
    named = str(config["scsi0"]).split(",")[0]
    unused = [config[key] for key in config if key.startswith("unused")]
    assert sorted(node.images()) == sorted(volume.partition(":")[2] for volume in {named, *unused})
    folder = node.paths.local_storage / "images"
    assert node.machines() == ([VMID] if runs else [])
    image = folder / named.partition(":")[2]
    if runs:
        status = node.root.get(f"{guest.path}/status/current")
        assert status["qmpstatus"] == "running"
        open_files = {str(link.readlink()) for link in Path(f"/proc/{status['pid']}/fd").iterdir()}
        assert str(image) in open_files, "the machine uses what its configuration names"
        others = [str(path) for path in folder.rglob("*") if path != image and str(path) in open_files]
        assert not others, "and nothing else"
        node.root.wait(node.root.post(f"{guest.path}/status/stop"))
    assert digest(image) == contents
    return image.suffix.removeprefix(".")


def every_transition(stage: Stage, runs: bool) -> Iterator[tuple[Stopped, str]]:
    guest = stage.bystander
    stage.seen.clear()
    n = 0
    while True:
        n += 1
        contents = new_disk(guest)
        if runs:
            guest.run("start")
        stage.stop_at("qmmove", n)
        move = {"disk": "scsi0", "storage": "local", "format": "qcow2", "delete": 1}
        stopped = stage.go("POST", f"{guest.path}/move_disk", move)
        if stopped is None:
            break
        yield stopped, contents
    assert stage.seen[0] == "begin"
    assert stage.seen[-1] == "end"
    assert "switch" in stage.seen
    stage.settle()
    assert check(stage, guest, contents, runs=runs) == "qcow2"


@pytest.mark.parametrize("runs", [False, True], ids=["stopped", "running"])
@pytest.mark.timeout(300)
def test_a_move_is_killed(stage: Stage, runs: bool) -> None:
    for stopped, contents in every_transition(stage, runs):
        os.kill(stopped.pid, signal.SIGKILL)
        stage.settle()
        found = check(stage, stage.bystander, contents, runs=runs)
        assert found == ("qcow2" if "commit" in stage.seen else "raw")


@pytest.mark.parametrize("runs", [pytest.param(False, marks=pytest.mark.slow), True], ids=["stopped", "running"])
@pytest.mark.timeout(300)
def test_a_move_and_the_daemon_are_killed(stage: Stage, runs: bool) -> None:
    for stopped, contents in every_transition(stage, runs):
        stage.node.end(signal.SIGKILL)
        os.kill(stopped.pid, signal.SIGKILL)
        stage.serve()
        stage.settle()
        check(stage, stage.bystander, contents, runs=runs)


@pytest.mark.slow
@pytest.mark.parametrize("runs", [False, True], ids=["stopped", "running"])
@pytest.mark.timeout(300)
def test_the_daemon_is_killed_while_a_disk_moves(stage: Stage, runs: bool) -> None:
    for stopped, contents in every_transition(stage, runs):
        stage.node.end(signal.SIGKILL)
        os.kill(stopped.pid, signal.SIGCONT)
        stage.serve()
        stage.settle()
        found = check(stage, stage.bystander, contents, runs=runs)
        assert found == ("raw" if stopped.transition == "begin" else "qcow2")
