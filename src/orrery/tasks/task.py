# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a task is: its name on the wire (UPID), its state, and the words in which its end is told.

The form of a UPID is that of the compatible API:
`UPID:{node}:{pid, 8 hex}:{process start, 8 or 9 hex}:{start time, 8 hex}:{type}:{id or empty}:{user or user!token}:`.
Process start is in clock ticks since boot (field 22 of `/proc/PID/stat`), start time in seconds since 1970.
"""

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self

from orrery.errors import ParameterError
from orrery.model.identity import Identity
from orrery.system.process import ProcessId

OK = "OK"
UNEXPECTED = "unexpected status"
"""The task's process died without telling why."""

STATUS_MAX = 4096  # characters of an exit status; QEMU's last words may be long

_NODE = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_UPID = re.compile(
    rf"UPID:({_NODE}):([0-9A-Fa-f]{{8}}):([0-9A-Fa-f]{{8,9}}):([0-9A-Fa-f]{{8}}):([^:\s/\x00]+):([^:\s/\x00]*):([^:\s/\x00]+):"
)
_PART = re.compile(r"[^:\s/\x00]*")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")
_SUBJECT_UNFIT = re.compile(r"[^A-Za-z0-9@._+=,~-]")
_SUBJECT_MAX = 96


@dataclass(frozen=True, slots=True)
class Upid:
    """The name of a task, unique on its node. Raises ValueError when a part cannot be told in a UPID."""

    node: str
    pid: int
    pstart: int
    starttime: int
    kind: str
    id: str
    user: str

    def __post_init__(self) -> None:
        if not re.fullmatch(_NODE, self.node):
            raise ValueError(f"'{self.node}' is not a node name")
        if not (0 <= self.pid < 1 << 32 and 0 <= self.pstart < 1 << 36 and 0 <= self.starttime < 1 << 32):
            raise ValueError("a number of the UPID is out of range")
        for name, part, empty in (("type", self.kind, False), ("id", self.id, True), ("user", self.user, False)):
            if not _PART.fullmatch(part) or not (part or empty):
                raise ValueError(f"'{part}' cannot be the {name} in a UPID")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads a UPID. Raises ParameterError (parameter `upid`), since it comes from outside."""
        match = _UPID.fullmatch(text)
        if match is None:
            raise ParameterError({"upid": f"unable to parse worker upid '{text[:200]}'"})
        node, pid, pstart, starttime, kind, subject, user = match.groups()
        return cls(node, int(pid, 16), int(pstart, 16), int(starttime, 16), kind, subject, user)

    def belongs_to(self, identity: Identity) -> bool:
        """Whether the task was begun by this identity, or, for a user in person, by one of the user's tokens."""
        try:
            owner = Identity.parse(self.user)
        except ValueError:
            return False
        return owner == identity or (identity.token is None and owner.user == identity.user)

    def __str__(self) -> str:
        return (
            f"UPID:{self.node}:{self.pid:08X}:{self.pstart:08X}:{self.starttime:08X}:{self.kind}:{self.id}:{self.user}:"
        )


def subject_id(subject: str) -> str:
    """What a task acts on, as the id of its UPID: characters that separate (`:`, `/`, space) become `_`."""
    return _SUBJECT_UNFIT.sub("_", subject)[:_SUBJECT_MAX]


class TaskState(StrEnum):
    """RUNNING until it ends or must be undone; UNDOING while it is; ENDED from its exit status on."""

    RUNNING = "running"
    UNDOING = "undoing"
    ENDED = "ended"


def warnings_status(count: int) -> str:
    """The exit status of a task that did its work and warned `count` times."""
    return f"WARNINGS: {count}" if count else OK


def error_status(message: str) -> str:
    """The exit status of a failed task: its message in one line. `OK` or `WARNINGS` alone would look like success."""
    encodable = message.encode("utf-8", "replace").decode()
    text = " ".join(_CONTROL.sub(" ", encodable).split())[:STATUS_MAX].strip() or "unknown error"
    return f"error: {text}" if status_type(text) in ("ok", "warning") else text


def status_type(status: str) -> str:
    """The class of an exit status, as `statusfilter` names it: ok, warning, unknown or error."""
    if status == OK:
        return "ok"
    if status.startswith("WARNINGS: "):
        return "warning"
    return "unknown" if status == UNEXPECTED or status.startswith(f"{UNEXPECTED} (") else "error"


def last_line(status: str) -> str:
    """The line with which a task's log ends."""
    return f"TASK {status}" if status_type(status) in ("ok", "warning") else f"TASK ERROR: {status}"


@dataclass(frozen=True, slots=True)
class TaskRecord:
    """A task as the journal knows it. Times are seconds since 1970."""

    upid: Upid
    state: TaskState
    operation: str
    """The operation's plain data as JSON, secrets left out."""
    boot: str
    worker_pid: int
    worker_start: int
    """The process that is responsible now: the task itself, or whoever undoes it."""
    cancelled: bool
    committed: bool
    error: str | None
    status: str | None
    endtime: int | None
    attempts: int
    """How often undoing was begun."""
    unfinished: int
    """Undo records that are still to be carried out."""

    @property
    def worker(self) -> ProcessId:
        """The process that is responsible now."""
        return ProcessId(self.worker_pid, self.worker_start)

    @property
    def running(self) -> bool:
        """Whether it has no exit status yet."""
        return self.state is not TaskState.ENDED

    @property
    def settled(self) -> bool:
        """Whether nothing is left to do for it."""
        return self.state is TaskState.ENDED and not self.unfinished

    def _common(self) -> dict[str, Any]:
        upid = self.upid
        reply: dict[str, Any] = {
            "upid": str(upid),
            "node": upid.node,
            "pid": upid.pid,
            "pstart": upid.pstart,
            "starttime": upid.starttime,
            "type": upid.kind,
            "id": upid.id,
            "user": upid.user,
        }
        try:
            identity = Identity.parse(upid.user)
        except ValueError:
            return reply
        if identity.token is not None:
            reply |= {"user": str(identity.user), "tokenid": identity.token}
        return reply

    def status_reply(self) -> dict[str, Any]:
        """The reply of `GET /nodes/{node}/tasks/{upid}/status`."""
        if self.running:
            return self._common() | {"status": "running"}
        return self._common() | {"status": "stopped", "exitstatus": self.status}

    def list_reply(self) -> dict[str, Any]:
        """The task's entry in `GET /nodes/{node}/tasks` and `GET /cluster/tasks`; no status while it runs."""
        if self.running:
            return self._common()
        return self._common() | {"endtime": self.endtime, "status": self.status}
