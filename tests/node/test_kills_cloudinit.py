# SPDX-License-Identifier: AGPL-3.0-or-later
"""What makes cloud-init media is killed at every transition: afterwards there is the one that is named, or none."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from tests.node.harness import Guest, Node
from tests.node.test_kills import Stage

from orrery.store.local import SqliteStore
from orrery.tasks.faultstop import VARIABLE

VMID = 400


@pytest.fixture(scope="module")
def stage(node: Node, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("seeds")
    with Node(folder / "node", port=8406) as made:
        file = folder / "stop"
        made.init().serve({VARIABLE: str(file)})
        yield Stage(made, made.guest(vmid=100), file)


def noted(node: Node) -> list[str]:
    with contextlib.closing(SqliteStore(node.paths.store_db)) as store:
        return [entry.key for entry in store.range("/cloudinit/")]


def media(node: Node) -> list[str]:
    return [name for name in node.images() if "cloudinit" in name]


def says(node: Node, volume: str) -> Any:
    """The user-data on a medium."""
    image = node.paths.local_storage / "images" / volume
    raw = image.with_suffix(".plain")
    subprocess.run(["qemu-img", "convert", "-O", "raw", image, raw], check=True)
    text = subprocess.run(["isoinfo", "-R", "-i", raw, "-x", "/user-data"], capture_output=True, check=True).stdout
    raw.unlink()
    return yaml.safe_load(text)


def whole(stage: Stage) -> None:
    """One medium, the one that is named; made anew it says what the options say."""
    node = stage.node
    assert node.locks() == []
    config = node.root.get(f"{node.path}/qemu/{VMID}/config", current=1)
    assert not [key for key in config if key.startswith("unused")]
    node.root.put(f"{node.path}/qemu/{VMID}/cloudinit")
    volume = str(config["ide2"]).split(",")[0].partition(":")[2]
    assert media(node) == [volume]
    assert says(node, volume)["user"] == config["ciuser"]
    assert not [row for row in node.root.get(f"{node.path}/qemu/{VMID}/cloudinit") if {"pending", "delete"} & {*row}]


def kills(stage: Stage, kind: str, verb: str, path: str, parameters: dict[str, Any]) -> Iterator[None]:
    """Kills the task at each of its transitions in turn, until it comes to its end."""
    stage.seen.clear()
    n = 0
    while True:
        n += 1
        stage.stop_at(kind, n)
        stopped = stage.go(verb, path, parameters)
        if stopped is None:
            stage.settle()
            return
        os.kill(stopped.pid, signal.SIGKILL)
        stage.settle()
        yield


def test_creations_are_killed(stage: Stage) -> None:
    node = stage.node
    create = {"vmid": VMID, "memory": 64, "ide2": "local:cloudinit", "ciuser": "anna"}
    for _ in kills(stage, "qmcreate", "POST", f"{node.path}/qemu", create):
        exists = VMID in [row["vmid"] for row in node.root.get(f"{node.path}/qemu")]
        assert exists == ("commit" in stage.seen)
        assert node.locks() == []
        if exists:
            whole(stage)
            Guest(node, VMID).destroy()
        assert media(node) == []
        assert noted(node) == []
    whole(stage)
    Guest(node, VMID).destroy()


@pytest.mark.parametrize("kind", ["qmconfig", "qmcloudinit", "qmmove"])
def test_changes_are_killed(stage: Stage, kind: str) -> None:
    node = stage.node
    guest = node.guest(vmid=VMID, memory=64, ide2="local:cloudinit,format=raw", ciuser="anna")
    requests: dict[str, tuple[str, str, dict[str, Any]]] = {
        "qmconfig": ("POST", f"{guest.path}/config", {"ciuser": "bert", "delete": "ostype"}),
        "qmcloudinit": ("PUT", f"{guest.path}/cloudinit", {}),
        "qmmove": ("POST", f"{guest.path}/move_disk", {"disk": "ide2", "storage": "local", "format": "qcow2"}),
    }
    for _ in kills(stage, kind, *requests[kind]):
        whole(stage)
        if kind == "qmmove" and str(guest.config()["ide2"]).partition(",")[0].endswith(".qcow2"):
            node.root.wait(node.root.post(f"{guest.path}/move_disk", disk="ide2", storage="local", format="raw"))
    whole(stage)
    guest.destroy()
    assert media(node) == []
