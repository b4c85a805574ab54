# SPDX-License-Identifier: AGPL-3.0-or-later
"""lxcfs of a real node: it outlives the daemon, the next one finds it, and it comes back when it dies."""

import os
import signal

import pytest
from tests.node.harness import Node, eventually

from orrery.drivers.lxc.lxcfs import LxcfsService

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]


def test_it_outlives_the_daemon_and_comes_back_when_it_dies(fresh_node: Node) -> None:
    service = LxcfsService(fresh_node.paths)
    [first] = service.processes()
    fresh_node.end(signal.SIGKILL)
    assert service.processes() == [first]
    fresh_node.serve()
    assert service.processes() == [first]
    os.kill(first.pid, signal.SIGKILL)
    eventually(lambda: service.processes() not in ([], [first]), 30, "another lxcfs")
    # That nothing is left of it after `orrery down` is what the harness sees to for every node.
