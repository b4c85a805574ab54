# SPDX-License-Identifier: AGPL-3.0-or-later
"""Time, replaceable in tests.

`wall` is what people and tickets see and may jump; `monotonic` measures durations and never does. `JumpWatch` tells
when the two have drifted apart, so that what expires by the wall clock can be looked at again.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol


class Clock(Protocol):
    """A source of time."""

    def wall(self) -> float:
        """Seconds since 1970, UTC."""
        ...

    def monotonic(self) -> float:
        """Seconds since some moment; counts on while the machine sleeps."""
        ...

    def sleep(self, seconds: float) -> None:
        """Wait."""
        ...


class SystemClock:
    """The machine's clocks."""

    def wall(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


@dataclass
class ManualClock:
    """A clock that stands until it is moved: for tests. `jump` moves the wall alone, as an administrator does."""

    now: float = 1_700_000_000.0
    uptime: float = 1_000.0

    def wall(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.uptime

    def sleep(self, seconds: float) -> None:
        self.advance(seconds)

    def advance(self, seconds: float) -> None:
        self.now += seconds
        self.uptime += seconds

    def jump(self, seconds: float) -> None:
        self.now += seconds


class JumpWatch:
    """Notices jumps of the wall clock larger than `tolerance` seconds between two looks."""

    def __init__(self, clock: Clock | None = None, tolerance: float = 2.0) -> None:
        self._clock = clock
        self._tolerance = tolerance
        self._offset = self._now()

    def _now(self) -> float:
        clock = self._clock or current()
        return clock.wall() - clock.monotonic()

    def look(self) -> float:
        """Seconds by which the wall clock was set since the last look; 0.0 when it only went on."""
        offset = self._now()
        moved = offset - self._offset
        if abs(moved) <= self._tolerance:
            return 0.0
        self._offset = offset
        return moved


_current: Clock = SystemClock()


def current() -> Clock:
    """The clock in use."""
    return _current


def wall() -> float:
    """Seconds since 1970 by the clock in use."""
    return _current.wall()


def monotonic() -> float:
    """Seconds of the clock in use that never jump."""
    return _current.monotonic()


def sleep(seconds: float) -> None:
    """Wait by the clock in use."""
    _current.sleep(seconds)


@contextmanager
def replaced(clock: Clock) -> Iterator[Clock]:
    """Use another clock in this process within the block."""
    global _current
    before, _current = _current, clock
    try:
        yield clock
    finally:
        _current = before
