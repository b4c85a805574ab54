# SPDX-License-Identifier: AGPL-3.0-or-later
"""The zygote: warm Python without threads, event loop, database or TLS, that forks a process for every task.

Run as `python -P -m orrery.tasks.zygote_process FD`, FD being its end of a SOCK_SEQPACKET pair with the core:

    core -> zygote   {"root", "node", "preload": [modules], "context": "module:function"}, once
    zygote -> core   {"ready": true, "seconds", "operations"} or {"error"}, once
    core -> zygote   {} with a descriptor: fork a task that finds its request there
    zygote -> core   {"pid", "start", "status"}: a task ended; status is its exit code, negative for a signal

Tasks may have others forked in the same way, over a connection that they are born with. When the core is gone the
zygote ends; its tasks go on.
"""

import contextlib
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orrery.errors import Failure
from orrery.system import process
from orrery.system.paths import Paths
from orrery.tasks import faultstop, registry
from orrery.tasks.daemonlog import log_into
from orrery.tasks.taskprocess import World, become_task, load, set_title

_MESSAGE_MAX = 1 << 16
_FDS_MAX = 1 << 20


@dataclass(frozen=True, slots=True)
class _Child:
    pid: int
    start: int


class _Nursery:
    """The zygote's loop: forks on request, tells of ends."""

    def __init__(self, core: socket.socket, world: World) -> None:
        self._core = core
        self._world = world
        self._selector = selectors.DefaultSelector()
        self._selector.register(core, selectors.EVENT_READ)
        self._tasks, self._for_tasks = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._selector.register(self._tasks, selectors.EVENT_READ)

    def run(self) -> None:
        """Until the core is gone."""
        while True:
            for key, _ in self._selector.select():
                if key.fileobj in (self._core, self._tasks):
                    if not self._serve(key.fileobj):
                        return
                else:
                    self._bury(key.fd, key.data)

    def _serve(self, asking: socket.socket) -> bool:
        try:
            message, descriptors, _, _ = socket.recv_fds(asking, _MESSAGE_MAX, 1, socket.MSG_CMSG_CLOEXEC)
        except ConnectionResetError:
            return False
        if not message:
            return False
        for descriptor in descriptors:
            self._fork(descriptor)
        return True

    def _fork(self, request: int) -> None:
        try:
            pid = os.fork()
        except OSError as error:
            reply = {"error": f"unable to fork the task: {error.strerror}"}
            with socket.socket(fileno=request) as starter, contextlib.suppress(OSError):  # who asked may be gone
                starter.sendall(json.dumps(reply).encode())
            return
        if pid == 0:
            self._selector.close()
            self._core.close()
            self._tasks.close()
            kept = sorted((request, self._for_tasks.fileno()))
            for low, high in zip((2, *kept), (*kept, _FDS_MAX), strict=True):
                os.closerange(low + 1, high)
            become_task(self._world, request, self._for_tasks)
        os.close(request)
        identity = process.identity(pid)
        child = _Child(pid, identity.start if identity else 0)
        self._selector.register(os.pidfd_open(pid), selectors.EVENT_READ, child)

    def _bury(self, pidfd: int, child: _Child) -> None:
        self._selector.unregister(pidfd)
        os.close(pidfd)
        status = os.waitstatus_to_exitcode(os.waitpid(child.pid, 0)[1])
        _send(self._core, {"pid": child.pid, "start": child.start, "status": status})


def main() -> int:
    """Serves the core at the other end of the descriptor named by the first argument."""
    started = time.monotonic()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    core = socket.socket(fileno=int(sys.argv[1]))
    core.set_inheritable(False)
    try:
        hello = core.recv(_MESSAGE_MAX)
    except ConnectionResetError:
        hello = b""
    if not hello:
        return 0  # the core died before it said a word
    settings = json.loads(hello)
    try:
        world = _warm_up(settings)
    except Exception as error:  # whatever an imported module raises, the core shall know
        _send(core, {"error": f"the zygote cannot start: {type(error).__name__}: {error}"})
        raise
    set_title("orrery zygote", f"orrery zygote ({world.node})")
    ready = {"ready": True, "seconds": time.monotonic() - started, "operations": len(list(registry.kinds()))}
    if _send(core, ready):
        _Nursery(core, world).run()
    return 0


def _warm_up(settings: dict[str, Any]) -> World:
    paths = Paths.of(Path(settings["root"]) if settings["root"] else None)
    log_into(paths.daemon_log)
    for module in settings["preload"]:
        importlib.import_module(module)
    context = load(settings["context"])
    registry.warm()
    if len(list(Path("/proc/self/task").iterdir())) > 1:
        raise Failure("an imported module started a thread; a process with threads cannot be forked safely")
    gc.collect()
    gc.freeze()
    stop_file = os.environ.get(faultstop.VARIABLE)
    return World(paths, settings["node"], context, Path(stop_file) if stop_file else None)


def _send(core: socket.socket, message: dict[str, Any]) -> bool:
    try:
        core.send(json.dumps(message).encode())
    except OSError:  # the core is gone; the loop notices
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
