# SPDX-License-Identifier: AGPL-3.0-or-later
"""The harness itself: a node comes up, is reached on both ways, and leaves nothing when it is destroyed."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.node import netns
from tests.node.client import ApiError
from tests.node.harness import NODE_NAME, Node, eventually

REPOSITORY = Path(__file__).resolve().parents[2]


def own_namespace() -> int:
    return Path("/proc/thread-self/ns/net").stat().st_ino


def test_both_ways_reach_the_node(node: Node) -> None:
    assert node.api.get("/version")["release"]
    assert [row["node"] for row in node.root.get("/nodes")] == [NODE_NAME]


def test_nobody_gets_nothing(node: Node) -> None:
    nobody = node.anonymous()
    with pytest.raises(ApiError) as caught:
        nobody.get("/version")
    nobody.close()
    assert caught.value.status == 401


def test_the_host_does_not_see_the_bridge(node: Node) -> None:
    inside = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
    assert "vmbr0" in inside
    with netns.outside():
        outside = own_namespace()
    assert outside != own_namespace()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_of_a_node(fresh_node: Node, number: int) -> None:
    fresh_node.guest(start=True)
    assert fresh_node.machines() == [101]
    fresh_node.end(number)
    assert fresh_node.machines() == [101]
    fresh_node.destroy()
    assert not fresh_node.stragglers()
    assert not fresh_node.groups()
    assert not fresh_node.folder.exists()


KILLED = """
import os, pathlib, signal, sys
from tests.node.harness import Node
node = Node(pathlib.Path(sys.argv[1])).init().serve()
node.guest(start=True)
print(*node.stragglers(), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_nothing_is_left_when_the_tests_are_killed(own_network: None, tmp_path: Path) -> None:
    """In a process of its own, which gets a network of its own."""
    root = tmp_path / "node"
    command = [sys.executable, "-c", KILLED, str(root)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(done.stdout.split()) > 3
    eventually(lambda: not Node(root).stragglers(), 30, "the end of all processes")
