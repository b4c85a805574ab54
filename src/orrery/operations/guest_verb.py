# SPDX-License-Identifier: AGPL-3.0-or-later
"""What all verbs of a guest's power have in common, whatever its kind: subject, lock, patience, waiting for its end."""

import time
from dataclasses import dataclass
from typing import ClassVar

from orrery.errors import Failure
from orrery.model.guest import GuestConfig, GuestKind
from orrery.operations.context import NodeContext
from orrery.operations.guest_kind import driver_of
from orrery.operations.guest_lock import NOUNS, check_lock, guest_lock
from orrery.store.guests import read_guest
from orrery.system import process
from orrery.system.process import ProcessId
from orrery.tasks.operation import TaskHandle

SHUTDOWN_TIMEOUT = 180
"""Seconds that a guest gets to shut down when nobody says."""

LONGEST = 7 * 24 * 3600
"""Seconds that anybody may ask to wait; the kernel's timers do not take any number."""

TICK = 0.5
"""Seconds between two looks at whether the task shall stop."""


@dataclass(frozen=True)
class GuestVerb:
    """A verb about one guest; `skiplock` was granted to root alone by the API."""

    guest_kind: ClassVar[GuestKind]

    vmid: int
    skiplock: bool = False
    timeout: int | None = None

    def subject(self) -> str:
        return str(self.vmid)

    def locks(self) -> tuple[str, ...]:
        return (guest_lock(self.vmid),)

    def config(self, ctx: NodeContext) -> GuestConfig:
        """The guest's configuration. Raises `NotFound` or `Locked`."""
        config = read_guest(ctx.store, self.vmid, kind=self.guest_kind, node=ctx.node).record.config
        check_lock(config, kind=self.guest_kind, skip=self.skiplock)
        return config

    def patience(self, usual: float) -> float:
        """How many seconds to wait: as asked for, else as usual."""
        return min(usual if self.timeout is None else self.timeout, LONGEST)

    def running(self, ctx: NodeContext) -> ProcessId:
        """The guest's process. Raises `Failure` when it does not run."""
        found = driver_of(ctx, self.guest_kind).find(self.vmid)
        if found is None:
            raise Failure(f"{NOUNS[self.guest_kind]} {self.vmid} not running")
        return found

    def check(self, ctx: NodeContext) -> None:
        """Raises why the verb is impossible now; most need a running guest."""
        self.config(ctx)
        self.running(ctx)


def ended(task: TaskHandle, found: ProcessId, limit: float) -> bool:
    """Whether the process ends within `limit` seconds; shows the time that is left, and heeds a request to stop."""
    begun = time.monotonic()
    while (waited := time.monotonic() - begun) < limit:
        task.progress(int(waited), int(limit), "s", "waiting for the guest")
        if process.wait(found, min(TICK, limit - waited)):
            return True
    return not process.alive(found)
