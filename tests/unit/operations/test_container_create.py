# SPDX-License-Identifier: AGPL-3.0-or-later
"""What remains of a new container that does not start."""

from types import SimpleNamespace
from typing import Any

import pytest

from orrery.errors import Failure
from orrery.operations.container_create import start_new
from orrery.operations.container_power import StartContainer


def test_a_new_container_that_does_not_start_leaves_nothing_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The task ends well, so its undo records are dropped: the pairs of network cards would stay."""

    def refuse(*_arguments: Any, **_options: Any) -> None:
        raise Failure("start failed: no")

    monkeypatch.setattr(StartContainer, "start", refuse)
    gone: list[str] = []
    ctx: Any = SimpleNamespace(
        containers=SimpleNamespace(find=lambda _vmid: None, discard=lambda vmid: gone.append(f"run of {vmid}")),
        network=SimpleNamespace(tap_remove_all=lambda vmid: gone.append(f"cards of {vmid}")),
    )
    warnings: list[str] = []
    start_new(ctx, SimpleNamespace(log=print, warn=warnings.append), 100)
    assert gone == ["run of 100", "cards of 100"]
    assert warnings == ["the container was created, but could not be started: start failed: no"]
