# SPDX-License-Identifier: AGPL-3.0-or-later
"""The tasks of a node, as the core sees them: start, cancel, and what happens when one ends or dies.

Tasks are children of the zygote, which tells of their ends. Those that outlived a zygote or a daemon are watched by
pidfd. A task whose process died without an end is undone by a new process that goes on with its log.
"""

import contextlib
import heapq
import os
import queue
import selectors
import signal
import socket
import threading
import time
from collections.abc import Callable

import structlog

from orrery.errors import OrreryError
from orrery.model.identity import Identity
from orrery.system import process
from orrery.system.paths import Paths
from orrery.system.process import ProcessId
from orrery.tasks.asking import request_of
from orrery.tasks.journal import Journal
from orrery.tasks.locks import WAIT_SECONDS
from orrery.tasks.operation import Operation
from orrery.tasks.progress import Progress, read_progress
from orrery.tasks.recover import finish, recover
from orrery.tasks.running import MAX_UNDO_ATTEMPTS
from orrery.tasks.task import UNEXPECTED, TaskRecord, TaskState, Upid, last_line
from orrery.tasks.zygote import Zygote

Listener = Callable[[TaskRecord], None]

_log = structlog.get_logger("orrery.tasks")


class Runner:
    """Starts and watches tasks. Thread safe; listeners are called from its own thread, once for each task's end."""

    retry_seconds = 5.0
    """Before the second try to undo; each further one waits four times as long."""

    def __init__(self, paths: Paths, node: str, journal: Journal, zygote: Zygote) -> None:
        self.journal = journal
        self.zygote = zygote
        self.node = node
        self.listeners: list[Listener] = []
        self._paths = paths
        self._known: set[str] = set()
        self._ended = threading.Condition()
        self._work: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._later: list[tuple[float, str]] = []
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_write.setblocking(False)
        self._selector.register(self._wake_read, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._watch, name="tasks", daemon=True)
        self._closing = False
        zygote.on_exit = lambda worker, status: self._do(lambda: self._exited(worker, status))
        zygote.on_lost = lambda: self._do(self._adopt_all)

    def open(self) -> None:
        """Takes up what the last daemon left, in the background, and begins to watch. The zygote must be launched."""
        found = recover(self.journal, self._paths.tasks_run)
        for task in found.alive + found.undo:
            self._known.add(str(task.upid))
        if found.alive or found.undo or found.finished:
            _log.info("tasks found", alive=len(found.alive), undo=len(found.undo), finished=len(found.finished))
        for task in found.undo:
            if task.state is TaskState.ENDED:
                self._do(lambda upid=task.upid: self._try_undo(upid, "trying again to undo"))  # type: ignore[misc]
        self._do(self._adopt_all)
        self._thread.start()

    def close(self) -> None:
        """Stops watching, and ends the zygote; tasks go on by themselves."""
        self._closing = True
        self._wake()
        self.zygote.close()
        if self._thread.is_alive():
            self._thread.join(10)
        self._selector.close()
        self._wake_read.close()
        self._wake_write.close()

    def start(self, operation: Operation, identity: Identity, *, lock_wait: float = WAIT_SECONDS) -> Upid:
        """Starts a task in its own process and returns its name; the task waits up to `lock_wait` s for its locks.

        Raises Failure when no task came to be: then nothing was done.
        """
        request = request_of(operation, str(identity), lock_wait)
        zygote = self.zygote.process
        upid = Upid.parse(self.zygote.request(request)["upid"])
        with self._ended:
            self._known.add(str(upid))
        if self.zygote.process != zygote:
            # Its parent may be the one that died, and may have been mourned before the task was in the journal.
            self._do(self._adopt_all)
        if not self.journal.get(upid).running:  # quicker than we: its end may have been told before we knew it
            self._do(lambda: self._settle(upid, UNEXPECTED))
        return upid

    def cancel(self, upid: Upid) -> None:
        """Asks a task to stop at its next safe point; harmless when it has ended, is being undone or was asked before.

        Raises Failure when it is past its point of no return, ParameterError when there is no such task.
        """
        if self.journal.request_cancel(upid):
            process.signal(self.journal.get(upid).worker, signal.SIGINT)

    def wait(self, upid: Upid, timeout: float) -> TaskRecord:
        """Waits until a task has ended and returns it; after `timeout` seconds as it is then, `running`."""
        end = time.monotonic() + timeout
        with self._ended:
            while True:
                task = self.journal.get(upid)
                left = end - time.monotonic()
                if not task.running or left <= 0:
                    return task
                self._ended.wait(min(left, 0.25))

    def progress(self, upid: Upid) -> Progress | None:
        """How far a running task told to be."""
        return read_progress(self._paths.tasks_run, upid)

    # --- the watching thread

    def _do(self, work: Callable[[], None]) -> None:
        self._work.put(work)
        self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # full: it is awake anyway; closed: nobody watches any more
            self._wake_write.send(b"\0")

    def _watch(self) -> None:
        while not self._closing:
            left = self._later[0][0] - time.monotonic() if self._later else None
            for key, _ in self._selector.select(left):
                if key.fileobj is self._wake_read:
                    self._wake_read.recv(4096)
                else:
                    self._pidfd_ready(key.fd, *key.data)
            while not self._work.empty():
                self._safely(self._work.get())
            while self._later and self._later[0][0] <= time.monotonic():
                upid = Upid.parse(heapq.heappop(self._later)[1])
                self._safely(lambda upid=upid: self._try_undo(upid, "trying again to undo"))  # type: ignore[misc]

    @staticmethod
    def _safely(work: Callable[[], None]) -> None:
        """One task's trouble must not keep the others from being watched."""
        try:
            work()
        except Exception:  # noqa: BLE001
            _log.exception("watching tasks")

    def _adopt_all(self) -> None:
        """Watches every living task by its pidfd and settles the dead: at the start, and after a zygote's death."""
        watched = {key.data[0] for key in self._selector.get_map().values() if key.data}
        open_tasks = self.journal.open_tasks()
        for task in open_tasks:
            upid = task.upid
            if task.worker in watched:
                continue
            pidfd = process.open_pidfd(task.worker) if self.journal.alive(task) else None
            if pidfd is None:
                self._safely(lambda upid=upid: self._settle(upid, "the daemon or the zygote died"))  # type: ignore[misc]
            else:
                self._selector.register(pidfd, selectors.EVENT_READ, (task.worker, upid))
        with self._ended:
            rest = self._known - {str(task.upid) for task in open_tasks}
        for text in rest:
            self._settle(Upid.parse(text), UNEXPECTED)

    def _pidfd_ready(self, pidfd: int, worker: ProcessId, upid: Upid) -> None:
        self._selector.unregister(pidfd)
        os.close(pidfd)
        process.reap(worker)  # where we are the reaper of orphans
        self._safely(lambda: self._settle(upid, "its process ended unexpectedly"))

    def _exited(self, worker: ProcessId, status: int) -> None:
        task = self.journal.by_worker(worker)
        if task is not None:
            how = f"was killed by signal {-status}" if status < 0 else f"ended with code {status}"
            self._settle(task.upid, f"its process {how}")

    def _settle(self, upid: Upid, how: str) -> None:
        """After the death of a task's process: tells of its end, or brings it to one."""
        task = self.journal.get(upid)
        if self.journal.alive(task) and not task.settled:
            return
        if task.state is TaskState.ENDED:
            if task.unfinished:
                self._retry(task)
        elif task.unfinished:
            _log.warning("a task died and is undone", upid=str(upid), how=how)
            self._try_undo(upid, f"the task did not end by itself: {how}")
            return
        else:
            _log.warning("a task died", upid=str(upid), how=how)
            finish(self.journal, task)
        self._tell(self.journal.get(upid))

    def _tell(self, task: TaskRecord) -> None:
        if task.status is not None:
            self.journal.logs.finish(task.upid, last_line(task.status))
        with self._ended:
            self._ended.notify_all()
            if str(task.upid) not in self._known:
                return
            self._known.discard(str(task.upid))
        for listener in list(self.listeners):
            self._safely(lambda listener=listener: listener(task))  # type: ignore[misc]

    # --- undoing

    def _try_undo(self, upid: Upid, reason: str) -> None:
        task = self.journal.get(upid)
        if task.settled or self.journal.alive(task):
            return
        if task.attempts >= MAX_UNDO_ATTEMPTS:
            _log.error("a task cannot be undone", upid=str(upid), attempts=task.attempts)
            finish(self.journal, task, give_up=True)
            self._tell(self.journal.get(upid))
            return
        try:
            self.zygote.request({"undo": str(upid), "error": UNEXPECTED, "reason": reason})
        except OrreryError as error:
            _log.error("a task cannot be undone now", upid=str(upid), error=error.message)
            self._retry(task)

    def _retry(self, task: TaskRecord) -> None:
        pause: float = self.retry_seconds * 4 ** max(0, task.attempts - 1)
        if all(upid != str(task.upid) for _, upid in self._later):
            heapq.heappush(self._later, (time.monotonic() + pause, str(task.upid)))
