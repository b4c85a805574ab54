# SPDX-License-Identifier: AGPL-3.0-or-later
"""Periodic jobs of the core, such as retention: each in its own rhythm, never two runs of one job at a time."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog

_log = structlog.get_logger("orrery.tasks")


@dataclass(frozen=True, slots=True)
class Job:
    """`work` is called in a thread every `seconds`, the first time after `first` seconds; its errors are logged."""

    name: str
    seconds: float
    work: Callable[[], object]
    first: float


class Schedule:
    """The jobs of one node. Times are counted by the monotonic clock, so a clock that jumps starts nothing."""

    def __init__(self) -> None:
        self._jobs: list[Job] = []

    def every(self, seconds: float, name: str, work: Callable[[], object], *, first: float | None = None) -> None:
        """Adds a job; before `run`."""
        self._jobs.append(Job(name, seconds, work, seconds if first is None else first))

    async def run(self) -> None:
        """Runs all jobs until it is cancelled. A job that takes longer than its rhythm leaves runs out."""
        async with asyncio.TaskGroup() as group:
            for job in self._jobs:
                group.create_task(_repeat(job), name=f"job {job.name}")


async def _repeat(job: Job) -> None:
    due = time.monotonic() + job.first
    while True:
        await asyncio.sleep(due - time.monotonic())
        try:
            await asyncio.to_thread(job.work)
        except Exception:  # noqa: BLE001  (the next run may do better)
            _log.exception("a periodic job failed", job=job.name)
        now = time.monotonic()
        due = max(due + job.seconds, now)
        if due == now:
            due = now + job.seconds
