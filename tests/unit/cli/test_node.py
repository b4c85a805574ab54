# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a node's own jobs tell."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from structlog.testing import capture_logs

from orrery.cli.node import Node
from orrery.errors import Failure
from orrery.front.nginx import Address
from orrery.system.paths import Paths


class Lxcfs:
    """Fails with these words in turn; with none it runs."""

    def __init__(self, *problems: str) -> None:
        self.problems = list(problems)

    def maintain(self, _containers: Any) -> list[str]:
        if problem := self.problems.pop(0):
            raise Failure(problem)
        return []


def test_what_keeps_lxcfs_from_running_is_told_once(tmp_path: Path) -> None:
    """It is tried every few seconds, for ever on a host that does not have it."""
    node = Node(Paths.of(tmp_path), "one", Address.parse("127.0.0.1:8006"))
    node._lxcfs = Lxcfs("no lxcfs", "no lxcfs", "no fuse", "no fuse", "", "no fuse")  # type: ignore[assignment]
    containers: Any = SimpleNamespace(running=dict)
    with capture_logs() as told:
        for _ in range(6):
            node._keep_lxcfs(containers)
    assert [each["reason"] for each in told] == ["no lxcfs", "no fuse", "no fuse"]
