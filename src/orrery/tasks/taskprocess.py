# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a task process does between its birth in the zygote and its end.

It reads its request from the descriptor that it was born with, enters itself into the journal, answers with its UPID,
and only then works. If nobody takes the answer any more, it ends without having done anything.
"""

import contextlib
import importlib
import json
import os
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import structlog

from orrery.errors import Failure, OrreryError
from orrery.system.paths import Paths
from orrery.tasks import faultstop, registry
from orrery.tasks.asking import Beside
from orrery.tasks.journal import Journal
from orrery.tasks.locks import own_identity
from orrery.tasks.progress import ProgressFile
from orrery.tasks.running import RunningTask, carry_out, take_back
from orrery.tasks.task import Upid, subject_id
from orrery.tasks.tasklog import LogWriter

_log = structlog.get_logger("orrery.tasks")

_ABANDONED = "nobody waited for the task to start"


@dataclass(frozen=True, slots=True)
class World:
    """What all tasks of a node have in common."""

    paths: Paths
    node: str
    context: Callable[[Paths, str], Any]
    stop_file: Path | None

    def open_context(self) -> Any:
        return self.context(self.paths, self.node)

    def journal(self) -> Journal:
        return Journal(self.paths.tasks_db, self.paths.task_logs)


def load(name: str) -> Any:
    """The object that `module:name` means."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def become_task(world: World, descriptor: int, zygote: socket.socket) -> NoReturn:
    """Takes over a freshly forked process that has no open descriptors but 0 to 2 and these two; never returns."""
    code = 1
    try:
        os.setsid()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        with socket.socket(fileno=descriptor) as starter:
            request = _receive(starter)
            if request is None:
                pass  # the core died, or gave up waiting, before it said what to do
            elif "undo" in request:
                _undo_task(world, request, starter)
            else:
                _run_task(world, request, starter, zygote)
        code = 0
    except BaseException:  # noqa: BLE001  (a forked child must never return into the zygote's loop)
        _log.exception("task process failed")
    finally:
        os._exit(code)


def _run_task(world: World, request: dict[str, Any], starter: socket.socket, zygote: socket.socket) -> None:
    me = own_identity()
    try:
        operation = registry.decode(request["kind"], request["data"])
        subject = subject_id(operation.subject())
        upid = Upid(world.node, me.pid, me.start, int(time.time()), operation.kind, subject, request["user"])
        _entitle(upid)
        journal = world.journal()
        _stop_if_asked(world, journal, upid, operation.kind)
        locked = journal.begin(upid, registry.public(operation), operation.locks())
    except OrreryError as error:
        _answer(starter, {"error": error.message})
        return
    with contextlib.closing(journal.logs.writer(upid)) as log:
        _speak_into(log)
        progress = ProgressFile(world.paths.tasks_run, upid)
        task = RunningTask(upid, journal, log, progress, Beside(zygote, journal, request["user"]))
        for number in (signal.SIGINT, signal.SIGTERM):  # before anybody knows whom to ask
            signal.signal(number, lambda _number, _frame: task.interrupt())
        if not _answer(starter, {"upid": str(upid)}):
            journal.fail(upid, _ABANDONED)
            return
        try:
            carry_out(operation, task, journal, world.open_context, request["lock_wait"], locked=locked)
        finally:
            progress.remove()


def _undo_task(world: World, request: dict[str, Any], starter: socket.socket) -> None:
    upid = Upid.parse(request["undo"])
    _entitle(upid)
    try:
        journal = world.journal()
        _stop_if_asked(world, journal, upid, f"{upid.kind}/undo")
        records = journal.claim(upid, own_identity(), request["error"])
    except OrreryError as error:
        _answer(starter, {"error": error.message})
        return
    with contextlib.closing(journal.logs.writer(upid)) as log:
        _speak_into(log)
        _answer(starter, {"upid": str(upid)})
        log.line(request["reason"])
        status = journal.get(upid).error or request["error"]
        take_back(upid, records, status, journal, log.line, world.open_context)


def _receive(starter: socket.socket) -> dict[str, Any] | None:
    """The request; None when its sender went away before it was whole."""
    text = bytearray()
    try:
        while piece := starter.recv(1 << 16):
            text += piece
        request = json.loads(text)
    except (OSError, ValueError):
        return None
    if not isinstance(request, dict):
        raise Failure("the request for a task is not an object")
    return request


def _answer(starter: socket.socket, reply: dict[str, Any]) -> bool:
    """Whether somebody was still there to be told."""
    try:
        starter.sendall(json.dumps(reply).encode())
        starter.shutdown(socket.SHUT_WR)
    except OSError:
        return False
    return True


def _speak_into(log: LogWriter) -> None:
    """What a library prints belongs to the task's log."""
    for number in (1, 2):
        os.dup2(log.descriptor, number)


def _stop_if_asked(world: World, journal: Journal, upid: Upid, kind: str) -> None:
    if world.stop_file is not None:
        hook = faultstop.stopper(world.stop_file, kind, upid)
        if hook is not None:
            journal.on_transition = hook


def _entitle(upid: Upid) -> None:
    """Shows the task in lists of processes: its name by the kernel's 15 characters, the whole UPID as its arguments."""
    set_title(f"{upid.kind} {upid.id}".rstrip(), f"task {upid}")


def set_title(name: str, arguments: str) -> None:
    """Names this process. The arguments are cut to the room that the first ones took (proc(5), stat fields 48, 49)."""
    with contextlib.suppress(OSError, ValueError):
        Path("/proc/self/comm").write_text(name[:15])
        fields = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
        begin, end = int(fields[45]), int(fields[46])
        text = arguments.encode()[: end - begin - 1].ljust(end - begin, b"\0")
        with Path("/proc/self/mem").open("r+b", buffering=0) as memory:
            memory.seek(begin)
            memory.write(text)
