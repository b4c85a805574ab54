# SPDX-License-Identifier: AGPL-3.0-or-later
"""How a task is asked for: the zygote gets a descriptor, forks, and the fork reads its request there and answers.

The core asks over its own connection to the zygote. A task may ask too, for tasks beside it (`Beside`): its end of the
connection comes from the zygote that bore it, and is deaf when that has died.
"""

import json
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from orrery.errors import Failure
from orrery.tasks import registry
from orrery.tasks.journal import Journal
from orrery.tasks.operation import Operation
from orrery.tasks.task import TaskRecord, Upid

REPLY_SECONDS: Final = 30.0
_MESSAGE_MAX: Final = 1 << 16
_POLL_SECONDS: Final = 0.01
_POLL_MAX_SECONDS: Final = 0.16


def request_of(operation: Operation, user: str, lock_wait: float) -> dict[str, Any]:
    """What a task process needs to know. Raises NotSupported for operations that are not registered."""
    return {
        "kind": registry.name_of(operation),
        "data": registry.encode(operation),
        "user": user,
        "lock_wait": lock_wait,
    }


def exchange(payload: bytes, timeout: float, pass_on: Callable[[socket.socket], None]) -> bytes:
    """Gives a fresh task its request and returns what it answers. `pass_on` sends the descriptor. Raises OSError."""
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            pass_on(theirs)
        ours.settimeout(timeout)
        ours.sendall(payload)
        ours.shutdown(socket.SHUT_WR)
        text = bytearray()
        while piece := ours.recv(_MESSAGE_MAX):
            text += piece
    return bytes(text)


def answer(text: bytes) -> dict[str, Any]:
    """A task's answer to its request. Raises Failure when there was none, or with what it says."""
    if not text:
        raise Failure("got no worker upid: the process of the task died at once")
    reply: dict[str, Any] = json.loads(text)
    if "error" in reply:
        raise Failure(reply["error"])
    return reply


class Beside:
    """Other tasks, started by a task in the name of the same user. They live and end by themselves."""

    def __init__(self, zygote: socket.socket, journal: Journal, user: str) -> None:
        zygote.settimeout(REPLY_SECONDS)  # one that hangs must not hang whoever asks it
        self._zygote = zygote
        self._journal = journal
        self._user = user

    def start(self, operation: Operation, lock_wait: float) -> Upid:
        """Starts a task. Raises Failure when none came to be."""
        payload = json.dumps(request_of(operation, self._user, lock_wait)).encode()
        try:
            text = exchange(payload, REPLY_SECONDS, self._pass_on)
        except OSError as error:
            raise Failure(f"got no worker upid: {error}") from error
        return Upid.parse(answer(text)["upid"])

    def wait_any(self, upids: Sequence[Upid], timeout: float) -> list[TaskRecord]:
        """Those of these tasks that have ended, as soon as there is one; none after `timeout` seconds."""
        end = time.monotonic() + timeout
        pause = _POLL_SECONDS
        while True:
            found = [task for task in map(self._journal.get, upids) if not task.running]
            if found or time.monotonic() > end:
                return found
            time.sleep(pause)
            pause = min(2 * pause, _POLL_MAX_SECONDS)

    def _pass_on(self, descriptor: socket.socket) -> None:
        socket.send_fds(self._zygote, [b"{}"], [descriptor.fileno()])
