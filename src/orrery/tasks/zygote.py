# SPDX-License-Identifier: AGPL-3.0-or-later
"""The core's side of the zygote: starts it, starts it again when it dies, and has tasks forked by it.

The core has threads, so it can neither fork a task nor the zygote; the zygote is a program of its own from the start
(`orrery.tasks.zygote_process` tells the protocol), and the second start is like the first.
"""

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import structlog

from orrery.errors import Failure
from orrery.system import process
from orrery.system.paths import Paths
from orrery.system.process import ProcessId
from orrery.tasks import faultstop
from orrery.tasks.asking import REPLY_SECONDS, answer, exchange

READY_SECONDS = 60.0
_MESSAGE_MAX = 1 << 16
_CHILD_FD = 3
_TRIES = 3
_TITLE_ROOM = 64  # more characters for a task's UPID in lists of processes
_STABLE_SECONDS = 10.0  # a zygote that lived longer is started again at once
_RESTART_SECONDS = 1.0

_log = structlog.get_logger("orrery.tasks")


class Zygote:
    """The zygote of a node. `preload` are modules to import, `context` is `module:function`, called with (paths, node).

    Thread safe. `on_exit` (process, exit code or negative signal) and `on_lost` are called from a thread of its own.
    """

    def __init__(self, paths: Paths, node: str, *, preload: Sequence[str], context: str) -> None:
        self.on_exit: Callable[[ProcessId, int], None] = lambda _process, _status: None
        self.on_lost: Callable[[], None] = lambda: None
        self.seconds = 0.0
        """How long the present zygote took to become ready."""
        self.process: ProcessId | None = None
        self._hello = {
            "root": str(paths.root) if paths.root else None,
            "node": node,
            "preload": list(preload),
            "context": context,
        }
        self._daemon_log = paths.daemon_log
        self._changed = threading.Condition()
        self._core: socket.socket | None = None
        self._ready = False
        self._problem: str | None = None
        self._closed = False

    def launch(self) -> None:
        """Starts the zygote without waiting for it; call it early. Raises Failure."""
        with self._changed:
            self._launch()

    def wait_ready(self, timeout: float = READY_SECONDS) -> None:
        """Waits until tasks can be forked. Raises Failure."""
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._closed or self._problem is not None, timeout)
            if not self._ready:
                raise Failure(self._problem or "the zygote, which forks all tasks, is not ready")

    def request(self, payload: dict[str, Any], timeout: float = REPLY_SECONDS) -> dict[str, Any]:
        """Has a task forked that gets `payload`; returns its answer. Raises Failure when there was none."""
        body = json.dumps(payload).encode()
        for _ in range(_TRIES):
            try:
                text = exchange(body, timeout, lambda descriptor: self._pass_on(descriptor, timeout))
                break
            except (ConnectionResetError, BrokenPipeError):
                # Closed before it was read to its end, which a task does first: nothing has begun.
                continue
            except OSError as error:
                raise Failure(f"got no worker upid: {error}") from error
        else:
            raise Failure("got no worker upid: the zygote dies again and again")
        return answer(text)

    def close(self, timeout: float = 5.0) -> None:
        """Ends the zygote; its tasks go on."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            if self._core is not None:
                self._core.shutdown(socket.SHUT_RDWR)
        if self.process is not None:
            process.wait(self.process, timeout)
            process.reap(self.process)

    def _pass_on(self, descriptor: socket.socket, timeout: float) -> None:
        end = time.monotonic() + timeout
        while True:
            self.wait_ready(max(0.0, end - time.monotonic()))
            with self._changed:
                if self._core is None or not self._ready:
                    continue
                try:
                    socket.send_fds(self._core, [b"{}"], [descriptor.fileno()])
                except OSError:  # it just died; the reader starts another
                    self._ready = False
                else:
                    return

    def _launch(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            descriptor = os.open(self._daemon_log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
            try:
                self.process = process.spawn(
                    [sys.executable, "-P", "-m", "orrery.tasks.zygote_process", str(_CHILD_FD), "-" * _TITLE_ROOM],
                    name="zygote",
                    stderr=descriptor,
                    pass_fds={_CHILD_FD: theirs.fileno()},
                    env={name: os.environ[name] for name in ("PYTHONPATH", faultstop.VARIABLE) if name in os.environ},
                )
            except BaseException:
                ours.close()
                raise
            finally:
                os.close(descriptor)
        ours.send(json.dumps(self._hello).encode())
        self._core = ours
        self._ready, self._problem = False, None
        threading.Thread(
            target=self._listen, args=(ours, self.process, time.monotonic()), name="zygote", daemon=True
        ).start()

    def _listen(self, core: socket.socket, me: ProcessId, started: float) -> None:
        while message := _receive(core):
            if "pid" in message:
                self.on_exit(ProcessId(message["pid"], message["start"]), message["status"])
                continue
            with self._changed:
                self._ready, self._problem = "ready" in message, message.get("error")
                self.seconds = time.monotonic() - started
                self._changed.notify_all()
        with self._changed:
            self._ready = False
            self._core = None
            core.close()
            self._changed.notify_all()
        process.wait(me, 5.0)
        status = process.reap(me)
        if not self._closed:
            self._again(status, time.monotonic() - started)

    def _again(self, status: int | None, lived: float) -> None:
        _log.error("the zygote died", status=status, problem=self._problem, lived=round(lived, 1))
        if lived < _STABLE_SECONDS:
            time.sleep(_RESTART_SECONDS)
        while True:
            with self._changed:
                if self._closed:
                    return
                try:
                    self._launch()
                except (Failure, OSError) as error:
                    self._problem = f"the zygote, which forks all tasks, cannot be started: {error}"
                else:
                    break
            time.sleep(_RESTART_SECONDS)
        self.on_lost()


def _receive(core: socket.socket) -> dict[str, Any] | None:
    try:
        message = core.recv(_MESSAGE_MAX)
    except OSError:
        return None
    return dict(json.loads(message)) if message else None
