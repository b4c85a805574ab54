# SPDX-License-Identifier: AGPL-3.0-or-later
"""The running task, in its own process, as its operation sees it; and its end, good or bad."""

from collections.abc import Callable
from typing import Any

import structlog

from orrery.errors import Cancelled, Failure, OrreryError
from orrery.tasks import revert
from orrery.tasks.asking import Beside
from orrery.tasks.journal import Journal
from orrery.tasks.operation import Operation
from orrery.tasks.progress import ProgressFile
from orrery.tasks.task import Upid, error_status, last_line, warnings_status
from orrery.tasks.tasklog import LogWriter

MAX_UNDO_ATTEMPTS = 5

_log = structlog.get_logger("orrery.tasks")


class RunningTask:
    """The `TaskHandle` of a task process. Cancelling is noticed at `step`, `before` and `progress`, up to `commit`."""

    def __init__(
        self, upid: Upid, journal: Journal, log: LogWriter, progress: ProgressFile, beside: Beside | None = None
    ) -> None:
        self._beside = beside
        self.upid = upid
        self.warnings = 0
        self._journal = journal
        self._writer = log
        self._progress = progress
        self._interrupted = False
        self._committed = False

    @property
    def beside(self) -> Beside:
        """The way to start other tasks. Raises Failure in a task that cannot."""
        if self._beside is None:
            raise Failure("this task cannot start others")
        return self._beside

    def interrupt(self) -> None:
        """Asks the task to stop; called from a signal handler."""
        self._interrupted = True

    def safe_point(self) -> None:
        """Raises Cancelled when the task was asked to stop and still may."""
        if self._interrupted and not self._committed:
            raise Cancelled

    def log(self, text: str) -> None:
        self._writer.line(text)

    def warn(self, text: str) -> None:
        self.warnings += 1
        self._writer.line(f"WARN: {text}")

    def progress(self, done: int, total: int, unit: str = "bytes", step: str = "") -> None:
        self.safe_point()
        self._progress.tell(done, total, unit, step)

    def before(self, undo: str, /, **arguments: Any) -> int:
        self.safe_point()
        return self._journal.before(self.upid, undo, arguments)

    def step(self, name: str, /, **data: Any) -> None:
        self.safe_point()
        self._journal.step(self.upid, name, data)

    def kept(self, record: int) -> None:
        self._journal.kept(self.upid, record)

    def commit(self) -> None:
        self.safe_point()
        self._journal.commit(self.upid)
        self._committed = True


def carry_out(
    operation: Operation,
    task: RunningTask,
    journal: Journal,
    open_context: Callable[[], Any],
    lock_wait: float,
    *,
    locked: bool,
) -> None:
    """Runs an operation to its end and enters that end; whatever goes wrong in it is undone.

    Raises only when the journal cannot be written any more: then the task counts as killed, and is undone by others.
    """
    ctx = None
    try:
        if not locked:
            task.log("waiting for somebody else to finish with the same thing")
            journal.locks.acquire(operation.locks(), str(task.upid), lock_wait, task.safe_point)
        ctx = open_context()
        operation.check(ctx)
        operation.run(ctx, task)
        status = warnings_status(task.warnings)
        journal.succeed(task.upid, status)
    except OrreryError as error:
        status = error_status(error.message)
    except Exception as error:  # noqa: BLE001  (a mistake in the program: details are for the daemon's log only)
        _log.exception("task failed unexpectedly", upid=str(task.upid))
        status = error_status(f"internal error ({type(error).__name__}), see the log of the node")
    else:
        journal.logs.finish(task.upid, last_line(status))
        return
    records = journal.fail(task.upid, status)
    if records:
        take_back(task.upid, records, status, journal, task.log, open_context if ctx is None else lambda: ctx)
    else:
        journal.logs.finish(task.upid, last_line(status))


def take_back(
    upid: Upid,
    records: list[revert.UndoRecord],
    status: str,
    journal: Journal,
    log: revert.Log,
    open_context: Callable[[], Any],
) -> None:
    """Carries out undo records and ends the task; what could not be undone stays for the next try, up to the fifth."""
    log(f"undoing {len(records)} of the task's steps")
    failed = records
    try:
        ctx = open_context()
    except Exception as error:  # noqa: BLE001  (whatever it is, another try comes later)
        _log.exception("no context to undo in", upid=str(upid))
        log(f"nothing can be undone now: {error}")
    else:
        failed = revert.unwind(records, ctx, log, lambda number: journal.undone(upid, number))
    if not failed:
        journal.end_undo(upid, status)
    else:
        names = ", ".join(dict.fromkeys(record.name for record in failed))
        give_up = journal.get(upid).attempts >= MAX_UNDO_ATTEMPTS
        log(f"not undone: {names}" + ("; giving up, please clean up by hand" if give_up else "; will be tried again"))
        status = f"{status} (not undone{'' if give_up else ' yet'}: {names})"
        journal.end_undo(upid, status, give_up=give_up)
    journal.logs.finish(upid, last_line(status))
