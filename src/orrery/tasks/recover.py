# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a starting daemon finds of the last one's tasks: living ones, dead ones, and what was left half done."""

from dataclasses import dataclass, field
from pathlib import Path

from orrery.tasks import history, progress
from orrery.tasks.journal import Journal
from orrery.tasks.task import UNEXPECTED, TaskRecord, last_line
from orrery.tasks.tasklog import file_name

_LOGS_CHECKED = 500  # newest tasks whose logs are completed; readers complete older ones as they read


@dataclass(frozen=True, slots=True)
class Found:
    """Tasks that live and go on, dead ones with something to undo, and dead ones that were only to be ended."""

    alive: list[TaskRecord] = field(default_factory=list)
    undo: list[TaskRecord] = field(default_factory=list)
    finished: list[TaskRecord] = field(default_factory=list)


def recover(journal: Journal, tasks_run: Path) -> Found:
    """Sorts the tasks that are not settled, ends those that need no more, frees the locks of requests long dead."""
    journal.locks.forget_requests()
    found = Found()
    for task in journal.open_tasks():
        if journal.alive(task):
            found.alive.append(task)
        elif task.unfinished:
            found.undo.append(task)
        else:
            finish(journal, task)
            found.finished.append(task)
    progress.sweep(tasks_run, {file_name(task.upid) for task in found.alive})
    for task in history.find(journal, history.TaskQuery(limit=_LOGS_CHECKED))[0]:
        if task.settled and task.status is not None and journal.logs.tail(task.upid) != last_line(task.status):
            journal.logs.finish(task.upid, last_line(task.status))
    return found


def finish(journal: Journal, task: TaskRecord, *, give_up: bool = False) -> None:
    """Ends a dead task that leaves nothing to undo, or with `give_up` one whose undo failed too often."""
    status = task.error or UNEXPECTED
    if give_up:
        status = f"{status} (not undone)"
    journal.end_undo(task.upid, status, give_up=give_up)
    journal.logs.finish(task.upid, last_line(status))
