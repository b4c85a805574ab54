# SPDX-License-Identifier: AGPL-3.0-or-later
"""A container that restarts from inside is started again, also when that cannot begin at once."""

from types import SimpleNamespace
from typing import Any

from orrery.errors import Failure
from orrery.operations.guest_reap import start_again


def test_a_restart_that_cannot_begin_is_not_forgotten() -> None:
    wanted = {100}
    ctx: Any = SimpleNamespace(containers=SimpleNamespace(forget_restart=wanted.discard))
    answers = [Failure("no task came to be"), None]

    def start(*_arguments: Any) -> None:
        if (answer := answers.pop(0)) is not None:
            raise answer

    runner: Any = SimpleNamespace(start=start)
    start_again(ctx, runner, 100)
    assert wanted == {100}
    start_again(ctx, runner, 100)
    assert wanted == set()
