# SPDX-License-Identifier: AGPL-3.0-or-later
"""Time that can be replaced, and its jumps."""

import time

from orrery.system import clock


def test_system_clock_is_the_machines() -> None:
    assert abs(clock.wall() - time.time()) < 1
    first = clock.monotonic()
    clock.sleep(0.01)
    assert clock.monotonic() >= first + 0.01


def test_replaced_within_the_block() -> None:
    with clock.replaced(clock.ManualClock(now=5.0)) as manual:
        clock.sleep(10)
        assert clock.wall() == 15.0
        assert clock.current() is manual
    assert clock.wall() > 1e9


def test_jumps_are_seen_once_and_passing_time_is_not_one() -> None:
    manual = clock.ManualClock()
    watch = clock.JumpWatch(manual)
    manual.advance(3600)
    assert watch.look() == 0.0
    manual.jump(-86400)
    assert watch.look() == -86400
    assert watch.look() == 0.0
    manual.jump(1.5)  # within what network time corrects
    assert watch.look() == 0.0
    manual.jump(1.5)  # small steps add up
    assert watch.look() == 3.0


def test_watch_follows_the_clock_in_use() -> None:
    manual = clock.ManualClock()
    with clock.replaced(manual):
        watch = clock.JumpWatch()
        manual.jump(100)
        assert watch.look() == 100
