# SPDX-License-Identifier: AGPL-3.0-or-later
"""What the task machinery knows of an operation, and what an operation knows of its task.

An operation is plain data (a frozen dataclass), so that it can be journalled, shown and run in another process.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

from orrery.tasks.task import TaskRecord, Upid


class TasksBeside(Protocol):
    """Other tasks, which a task starts in the name of the same user; they live and end by themselves."""

    def start(self, operation: "Operation", lock_wait: float) -> Upid:
        """Starts a task that waits up to `lock_wait` seconds for its locks. Raises `Failure` when none came to be."""
        ...

    def wait_any(self, upids: Sequence[Upid], timeout: float) -> list[TaskRecord]:
        """Those of these tasks that have ended, as soon as there is one; none after `timeout` seconds."""
        ...


class TaskHandle(Protocol):
    """The running task, as its operation sees it."""

    @property
    def beside(self) -> TasksBeside:
        """The way to other tasks, for an operation that consists of such."""
        ...

    def log(self, text: str) -> None:
        """Writes a line (or several) to the task's log."""
        ...

    def warn(self, text: str) -> None:
        """Writes a warning; the task then ends with `WARNINGS: n` instead of `OK`."""
        ...

    def progress(self, done: int, total: int, unit: str = "bytes", step: str = "") -> None:
        """Reports structured progress; cheap enough for every chunk. Raises `Cancelled` when asked to stop."""
        ...

    def before(self, undo: str, /, **arguments: Any) -> int:
        """Journals, durably, the undo action `undo` before the act that it would undo; returns the record's id."""
        ...

    def step(self, name: str, /, **data: Any) -> None:
        """Journals a transition that needs no undo. Raises `Cancelled` when asked to stop."""
        ...

    def kept(self, record: int) -> None:
        """Drops one undo record: what it would undo shall stay, whatever comes."""
        ...

    def commit(self) -> None:
        """The point of no return: all undo records are dropped, and cancelling is refused from here on."""
        ...


class Operation(Protocol):
    """A verb with its arguments. `ctx` is the node's context (`orrery.operations.context.NodeContext`)."""

    kind: ClassVar[str]
    """The task type on the wire, such as `qmstart`."""

    def subject(self) -> str:
        """What it acts on, for the task's id field: `100`, a volume id, or empty."""
        ...

    def locks(self) -> Sequence[str]:
        """Names of the locks to hold while running, such as `guest/100`; taken in sorted order."""
        ...

    def check(self, ctx: Any) -> None:
        """Raises the reason why it is impossible now. No side effect."""
        ...

    def run(self, ctx: Any, task: TaskHandle) -> None:
        """Does it. Each act is idempotent, or was announced by `task.before`."""
        ...
