# SPDX-License-Identifier: AGPL-3.0-or-later
import asyncio
import contextlib
import threading
import time

from orrery.tasks.schedule import Schedule


def run_for(schedule: Schedule, seconds: float) -> None:
    async def run() -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(schedule.run(), seconds)

    asyncio.run(run())


def test_jobs_run_in_their_rhythm_and_survive_their_errors() -> None:
    ran: list[str] = []

    def failing() -> None:
        ran.append("failing")
        raise RuntimeError("this time it does not work")

    schedule = Schedule()
    schedule.every(0.05, "failing", failing, first=0)
    schedule.every(60, "rare", lambda: ran.append("rare"))
    schedule.every(60, "rare, now", lambda: ran.append("now"), first=0)
    begun = time.monotonic()
    run_for(schedule, 0.5)
    most = (time.monotonic() - begun) / 0.05 + 2  # however long the end took on a busy machine
    assert 2 <= ran.count("failing") <= most
    assert ran.count("now") == 1
    assert "rare" not in ran


def test_a_slow_job_never_overlaps_with_itself_and_does_not_block_others() -> None:
    inside, most, quick = 0, 0, 0
    lock = threading.Lock()

    def slow() -> None:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        time.sleep(0.2)
        with lock:
            inside -= 1

    def fast() -> None:
        nonlocal quick
        quick += 1

    schedule = Schedule()
    schedule.every(0.02, "slow", slow, first=0)
    schedule.every(0.02, "fast", fast, first=0)
    run_for(schedule, 0.5)
    assert most == 1
    assert quick >= 3
