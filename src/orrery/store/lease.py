# SPDX-License-Identifier: AGPL-3.0-or-later
"""When a lease ends. The machine's clock may jump, and the machine may restart; neither may end a lease at random.

Within one boot the time since boot decides, which no clock setting changes and which goes on during sleep. After a
restart only the wall clock is left: a lease that it shows to be over is over, any other one gets at most its full time
again from now, so a clock set to the past cannot keep a lease for years.
"""

import time
from dataclasses import dataclass
from typing import Protocol

from orrery.system import host


class LeaseClock(Protocol):
    """Where the time comes from; tests put their own in its place."""

    def boot(self) -> str:
        """Changes with every start of the machine."""
        ...

    def elapsed(self) -> float:
        """Seconds since that start."""
        ...

    def wall(self) -> float:
        """Seconds since 1970."""
        ...


class SystemClock:
    """The machine's clock."""

    def __init__(self) -> None:
        self._boot = host.boot_id()

    def boot(self) -> str:
        return self._boot

    def elapsed(self) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def wall(self) -> float:
        return time.time()


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease of `ttl` seconds: renewed at `wall`, ending at `deadline` seconds since the start named `boot`."""

    ttl: float
    boot: str
    deadline: float
    wall: float

    @staticmethod
    def begin(clock: LeaseClock, ttl: float) -> "Lease":
        """A lease with its full time from now."""
        return Lease(ttl, clock.boot(), clock.elapsed() + ttl, clock.wall())

    def ended(self, clock: LeaseClock) -> bool:
        """Whether its time is over; exact for a lease of this boot."""
        if self.boot == clock.boot():
            return clock.elapsed() >= self.deadline
        return clock.wall() >= self.wall + self.ttl

    def rebased(self, clock: LeaseClock) -> "Lease":
        """The same lease counted in this boot's time. Only for one that has not ended."""
        if self.boot == clock.boot():
            return self
        left = min(self.ttl, self.wall + self.ttl - clock.wall())
        return Lease(self.ttl, clock.boot(), clock.elapsed() + left, clock.wall())
