# SPDX-License-Identifier: AGPL-3.0-or-later
"""Test only: stops a task's process right after a chosen transition became durable.

The environment variable ORRERY_TEST_STOP, honoured only when it is set as the zygote starts, names a file. Each task
process reads `KIND:N` from it as it begins (`KIND/undo:N` for the process that undoes a dead task); after its N-th
transition it writes `{"upid", "pid", "n", "transition"}` to the sibling `FILE.stopped` and stops itself by SIGSTOP. So
a test can kill the task, the daemon or both at every transition.
"""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

from orrery.tasks.task import Upid

VARIABLE = "ORRERY_TEST_STOP"


def stopper(file: Path, kind: str, upid: Upid) -> Callable[[str], None] | None:
    """What to call after each transition, or None when the file asks for another kind."""
    try:
        wanted, _, number = file.read_text().strip().rpartition(":")
    except OSError:
        return None
    if wanted != kind or not number.isdecimal():
        return None
    last = int(number)
    count = 0

    def transition(name: str) -> None:
        nonlocal count
        count += 1
        if count == last:
            told = file.with_name(f"{file.name}.stopped")
            fresh = told.with_name(f".{told.name}.{os.getpid()}")
            fresh.write_text(json.dumps({"upid": str(upid), "pid": os.getpid(), "n": count, "transition": name}))
            fresh.replace(told)
            os.kill(os.getpid(), signal.SIGSTOP)

    return transition
