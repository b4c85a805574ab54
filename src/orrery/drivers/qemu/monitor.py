# SPDX-License-Identifier: AGPL-3.0-or-later
"""Talking QMP to one machine, synchronously.

A monitor socket serves one client at a time; who comes second waits for the greeting until the first has gone. Errors
are raised as `MonitorError` with the words that clients of the compatible API know.
Protocol: https://www.qemu.org/docs/master/interop/qmp-spec.html
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from qemu.qmp import ConnectError, ExecInterruptedError, ExecuteError, QMPClient, QMPError

from orrery.errors import Failure
from orrery.system import sockets

# What the library would say by itself about a connection that ends is said by our errors.
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)

DEFAULT_TIMEOUT: Final = 5.0
_DISCONNECT_SECONDS: Final = 0.5

Event = Mapping[str, Any]
"""An event as QEMU sends it: `event`, `data`, `timestamp`."""

_T = TypeVar("_T")


class MonitorError(Failure):
    """A command that QEMU refused or did not answer. `kind` is QEMU's error class, `timeout` or `closed`."""

    def __init__(self, message: str, kind: str = "GenericError") -> None:
        super().__init__(message)
        self.kind = kind


class Monitor:
    """A connection to one of a machine's monitors; use as a context manager.

    `timeout` in seconds holds for connecting and for each command that names none of its own. Must not be used in a
    thread that runs an event loop. Raises Failure when the machine does not run, MonitorError otherwise.
    """

    def __init__(self, path: Path, vmid: int, timeout: float = DEFAULT_TIMEOUT) -> None:
        self.path = path
        self.vmid = vmid
        self.timeout = timeout
        self._loop = asyncio.new_event_loop()
        # A machine that goes away fails several of the library's tasks at once; one error, raised by us, is enough.
        self._loop.set_exception_handler(lambda loop, context: None)
        self._client = QMPClient(f"VM {vmid}")
        self._events: list[Event] = []

    def __enter__(self) -> Self:
        try:
            self._run(self._connect(), "qmp_capabilities", self.timeout)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the connection; never raises."""
        if self._loop.is_closed():
            return
        with contextlib.suppress(Exception):
            self._loop.run_until_complete(_quietly(self._client))
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                self._loop.run_until_complete(task)
        self._loop.close()

    # --- commands

    def execute(self, command: str, arguments: Mapping[str, Any] | None = None, *, timeout: float | None = None) -> Any:
        """Run a command and give what it returns. Raises MonitorError."""
        given = {**arguments} if arguments else None
        return self._run(self._client.execute(command, given), command, timeout or self.timeout)

    def add_fd(self, descriptor: int, label: str) -> str:
        """Hand over an open file; gives the name by which block nodes open it. `remove_fd` takes it back."""
        self._send(descriptor)
        answer = self.execute("add-fd", {"opaque": label})
        return f"/dev/fdset/{answer['fdset-id']}"

    def remove_fd(self, label: str) -> None:
        """Take back all open files that were handed over under this label; nodes that use them keep them open."""
        for group in self.execute("query-fdsets"):
            if any(each.get("opaque") == label for each in group["fds"]):
                with contextlib.suppress(MonitorError):
                    self.execute("remove-fd", {"fdset-id": group["fdset-id"]})

    def give_fd(self, descriptor: int, name: str) -> None:
        """Hand over a tap or socket under a name that the next command refers to."""
        self._send(descriptor)
        self.execute("getfd", {"fdname": name})

    def _send(self, descriptor: int) -> None:
        async def send() -> None:
            self._client.send_fd_scm(descriptor)

        self._run(send(), "getfd", self.timeout)

    # --- events

    def wait_event(self, match: Callable[[Event], bool], timeout: float) -> Event | None:
        """The first event, among those that came since connecting and were not yet taken, for which `match` holds.

        None when none comes within `timeout` seconds. Events that do not match are kept for later calls.
        """
        end = time.monotonic() + timeout
        while True:
            self._collect()
            for index, event in enumerate(self._events):
                if match(event):
                    return self._events.pop(index)
            left = end - time.monotonic()
            if left <= 0:
                return None
            with contextlib.suppress(TimeoutError):
                event = self._loop.run_until_complete(asyncio.wait_for(self._next_event(), left))
                self._events.append(event)

    def _collect(self) -> None:
        self._events += [dict(event) for event in self._client.events.clear()]

    async def _next_event(self) -> Event:
        return dict(await self._client.events.get())

    # --- the loop behind it

    async def _connect(self) -> None:
        try:
            connection = sockets.connect_unix(self.path, self.timeout)
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise Failure(f"VM {self.vmid} not running") from error
        connection.setblocking(False)
        await self._client.connect(connection)

    def _run(self, work: Coroutine[Any, Any, _T], command: str, timeout: float) -> _T:
        failed = f"VM {self.vmid} qmp command '{command}' failed"
        try:
            return self._loop.run_until_complete(asyncio.wait_for(work, timeout))
        except TimeoutError as error:
            raise MonitorError(f"{failed} - got timeout", "timeout") from error
        except ExecuteError as error:
            raise MonitorError(f"{failed} - {error}", error.error_class) from error
        except (ExecInterruptedError, ConnectError, EOFError) as error:
            raise MonitorError(f"{failed} - the machine closed the connection", "closed") from error
        except QMPError as error:
            raise MonitorError(f"{failed} - {error}") from error


async def _quietly(client: QMPClient) -> None:
    """Disconnect; a machine that went away meanwhile is no news."""
    with contextlib.suppress(QMPError, EOFError, OSError, TimeoutError):
        await asyncio.wait_for(client.disconnect(), _DISCONNECT_SECONDS)
