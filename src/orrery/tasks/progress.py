# SPDX-License-Identifier: AGPL-3.0-or-later
"""How far a task is: a small file per running task, replaced in one step, so that nobody reads half of it."""

import contextlib
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from orrery.tasks.task import Upid
from orrery.tasks.tasklog import file_name

_INTERVAL = 0.2  # seconds between two writes


@dataclass(frozen=True, slots=True)
class Progress:
    """`done` of `total` units of a step; `since`: when the step began, `at`: when it was told (seconds since 1970)."""

    done: int
    total: int
    unit: str
    step: str
    since: float
    at: float


class ProgressFile:
    """The writer's side. Losing a report is harmless, so errors of the file system are not raised."""

    def __init__(self, folder: Path, upid: Upid) -> None:
        self._path = folder / file_name(upid)
        self._fresh = folder / f".{upid.pid}-{upid.pstart}.new"
        self._next = 0.0
        self._since = 0.0
        self._told: tuple[int, int, str, str] | None = None

    def tell(self, done: int, total: int, unit: str, step: str) -> None:
        """Writes at most every 0.2 s, but the beginning and the end of each step in any case."""
        now = time.monotonic()
        new_step = self._told is None or self._told[2:] != (unit, step)
        if not new_step and now < self._next and done < total:
            return
        if self._told == (done, total, unit, step):
            return
        if new_step:
            self._since = time.time()
        self._next = now + _INTERVAL
        self._told = (done, total, unit, step)
        text = json.dumps(asdict(Progress(done, total, unit, step, self._since, time.time())))
        with contextlib.suppress(OSError):
            self._fresh.write_text(text)
            self._fresh.replace(self._path)

    def remove(self) -> None:
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)


def read_progress(folder: Path, upid: Upid) -> Progress | None:
    """What the task told last, None when it told nothing or has ended."""
    try:
        return Progress(**json.loads((folder / file_name(upid)).read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def sweep(folder: Path, running: set[str]) -> None:
    """Removes what killed tasks left behind; `running` are the file names of living tasks."""
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if path.name not in running:
                path.unlink(missing_ok=True)
