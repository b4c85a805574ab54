# SPDX-License-Identifier: AGPL-3.0-or-later
"""The daemon's ear at every running machine: reports events as they happen, and takes samples at an interval.

It holds each machine's monitor `events` and nothing else, so tasks never wait for it. Machines are found by their
records, whoever started them; a machine that goes away is reported once as `ENDED`.
"""

import asyncio
import concurrent.futures
import contextlib
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import structlog
from qemu.qmp import EventListener, Message, QMPClient, QMPError

from orrery.drivers.qemu.devices.memory import BALLOON
from orrery.drivers.qemu.launching import LOG_FILE
from orrery.drivers.qemu.records import Records
from orrery.errors import Failure, OrreryError
from orrery.system import process, sockets
from orrery.system.paths import Paths
from orrery.system.process import ProcessId

log = structlog.get_logger("orrery.qemu")

ENDED: Final = "ENDED"
"""Our own event: the machine's process has ended."""

_ANSWER_SECONDS: Final = 5.0
_LAST_BREATH_SECONDS: Final = 1.0
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_LOG_MAX: Final = 1 << 20
_UNKNOWN: Final = (1 << 64) - 1  # what a guest's balloon says about figures that it does not have


@dataclass(frozen=True, slots=True)
class MachineEvent:
    """Something that happened to a machine: QEMU's name for it (`SHUTDOWN`, `RESET`, …) or `ENDED`, and its data."""

    vmid: int
    name: str
    data: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Sample:
    """How a machine did at one moment (`at`, monotonic seconds). Bytes since its start; CPU time in seconds.

    `memory` is what the process holds on the host; `balloon` what the guest has, `guest_free` and `guest_total` what
    the guest itself says about that, as far as it says anything.
    """

    at: float
    state: str
    cpu: float
    memory: int
    disk_read: int
    disk_written: int
    balloon: int | None = None
    guest_free: int | None = None
    guest_total: int | None = None
    heard: float | None = None
    """When the guest last told how its memory is used (monotonic seconds, by our clock); None when it never did."""


class MachineWatcher:
    """Watches all machines of a root, in a thread (`start`, `stop`) or in an event loop (`run`).

    Read `samples` from any thread. `on_event` must neither block nor raise. `interval` and `rescan` in seconds: how
    often samples are taken, and how often new machines are looked for (`look` does it at once).
    """

    def __init__(
        self,
        paths: Paths,
        on_event: Callable[[MachineEvent], None],
        *,
        interval: float = 10.0,
        rescan: float = 2.0,
    ) -> None:
        self.samples: dict[int, Sample] = {}
        self._paths = paths
        self._records = Records(paths)
        self._on_event = on_event
        self._interval = interval
        self._rescan = rescan
        self._look = asyncio.Event()
        self._watched: set[int] = set()
        self._clients: dict[int, QMPClient] = {}
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._main: asyncio.Task[None] | None = None
        self._ready = threading.Event()

    def start(self) -> None:
        """Watch in a thread of its own until `stop`; `on_event` is then called in that thread."""
        self._thread = threading.Thread(target=self._work, name="machine-watcher", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End what `start` began; machines are not touched."""
        if self._thread is None:
            return
        self._ready.wait()
        if self._loop is not None and self._main is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended by itself
                self._loop.call_soon_threadsafe(self._main.cancel)
        self._thread.join()
        self._thread = None

    def look(self) -> None:
        """Look for new machines now; from any thread."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._look.set)

    def set_balloon(self, vmid: int, size: int) -> None:
        """Ask a guest to make do with `size` bytes, from any thread but the watcher's; the guest takes its time.

        Raises Failure when the machine is not watched now, or does not answer.
        """
        client, loop = self._clients.get(vmid), self._loop
        if client is None or loop is None:
            raise Failure(f"VM {vmid} does not listen")
        asking = _ask(client, "balloon", {"value": size})
        try:
            answer = asyncio.run_coroutine_threadsafe(asking, loop)
        except RuntimeError as error:  # the watcher has ended
            asking.close()
            raise Failure(f"VM {vmid} does not listen") from error
        try:
            answer.result(_ANSWER_SECONDS + 1)
        except (QMPError, OSError, EOFError, TimeoutError, concurrent.futures.CancelledError) as error:
            answer.cancel()
            raise Failure(f"VM {vmid} qmp command 'balloon' failed - {str(error) or 'got timeout'}") from error

    def _work(self) -> None:
        with contextlib.suppress(asyncio.CancelledError), asyncio.Runner() as runner:
            # A machine that goes away fails several of the library's tasks at once; that it ended is known by then.
            runner.get_loop().set_exception_handler(lambda loop, context: None)
            runner.run(self.run())

    async def run(self) -> None:
        """Watch until cancelled."""
        self._loop, self._main = asyncio.get_running_loop(), asyncio.current_task()
        self._ready.set()
        known: dict[int, ProcessId] = {}
        async with asyncio.TaskGroup() as group:
            while True:
                running = await self._running(known)
                for vmid in [vmid for vmid, machine in known.items() if running.get(vmid) != machine]:
                    del known[vmid]
                    self.samples.pop(vmid, None)
                    self._on_event(MachineEvent(vmid, ENDED, {}))
                known.update(running)
                for vmid in running.keys() - self._watched:
                    self._watched.add(vmid)
                    group.create_task(self._watch(vmid, running[vmid]))
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._look.wait(), self._rescan)
                self._look.clear()

    async def _running(self, known: dict[int, ProcessId]) -> dict[int, ProcessId]:
        """The machines that run; those that are known when nobody can tell now."""
        try:
            records = await asyncio.to_thread(self._records.running)
        except (OSError, OrreryError) as error:
            log.warning("running machines cannot be looked up", reason=str(error))
            return dict(known)
        return {vmid: record.process for vmid, record in records.items()}

    # --- one machine

    async def _watch(self, vmid: int, machine: ProcessId) -> None:
        try:
            await self._listen(vmid, machine)
        except (QMPError, Failure, OSError, EOFError, TimeoutError):
            # It went away, or does not answer: the next look tells which.
            await asyncio.to_thread(process.wait, machine, _LAST_BREATH_SECONDS)
        except Exception:  # whatever one machine answers, the others have to be heard
            log.exception("a machine cannot be watched", vmid=vmid)
            await asyncio.to_thread(process.wait, machine, _LAST_BREATH_SECONDS)
        finally:
            self._watched.discard(vmid)
            self._look.set()

    async def _listen(self, vmid: int, machine: ProcessId) -> None:
        client = QMPClient(f"VM {vmid} events")
        client.events.event_filter = lambda event: False  # this listener would keep every event for ever
        client.register_listener(_Reporter(lambda event: self._report(vmid, event)))
        connection = sockets.connect_unix(self._paths.guest_run(vmid) / "events", _ANSWER_SECONDS)
        connection.setblocking(False)
        await asyncio.wait_for(client.connect(connection), _ANSWER_SECONDS)
        try:
            names = await _ask(client, "qom-list", {"path": "/machine/peripheral"})
            balloon = _Balloon(client) if any(each["name"] == BALLOON for each in names) else None
            self._clients[vmid] = client
            while True:
                self.samples[vmid] = await self._sample(vmid, client, machine, balloon)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(client.runstate_changed(), self._interval)
                    raise EOFError("the machine closed its monitor")
        finally:
            self._clients.pop(vmid, None)
            with contextlib.suppress(QMPError, EOFError, OSError, TimeoutError):
                await asyncio.wait_for(client.disconnect(), _ANSWER_SECONDS)

    def _report(self, vmid: int, event: Message) -> None:
        data: Any = event.get("data", {})
        self._on_event(MachineEvent(vmid, str(event["event"]), data))

    async def _sample(self, vmid: int, client: QMPClient, machine: ProcessId, balloon: "_Balloon | None") -> Sample:
        state = await _ask(client, "query-status")
        blocks = [each["stats"] for each in await _ask(client, "query-blockstats")]
        memory = _Memory() if balloon is None else await balloon.ask()
        cpu, resident = await asyncio.to_thread(_on_host, machine, self._paths.guest_run(vmid) / LOG_FILE)
        return Sample(
            at=time.monotonic(),
            state=str(state["status"]),
            cpu=cpu,
            memory=resident,
            disk_read=sum(each["rd_bytes"] for each in blocks),
            disk_written=sum(each["wr_bytes"] for each in blocks),
            balloon=memory.actual,
            guest_free=memory.free,
            guest_total=memory.total,
            heard=memory.heard,
        )


class _Reporter(EventListener):
    """Hands events on as they come, and keeps none."""

    def __init__(self, report: Callable[[Message], None]) -> None:
        super().__init__()
        self._report = report

    async def put(self, event: Message) -> None:
        self._report(event)


async def _ask(client: QMPClient, command: str, arguments: Mapping[str, object] | None = None) -> Any:
    return await asyncio.wait_for(client.execute(command, arguments), _ANSWER_SECONDS)


@dataclass(frozen=True, slots=True)
class _Memory:
    actual: int | None = None
    free: int | None = None
    total: int | None = None
    heard: float | None = None


class _Balloon:
    """The balloon of one machine, as far as its guest blows it up and tells about its memory."""

    def __init__(self, client: QMPClient) -> None:
        self._client = client
        self._update = 0  # the guest's last report: seconds since 1970 by QEMU's clock, 0 when there was none
        self._heard: float | None = None

    async def ask(self) -> _Memory:
        path = f"/machine/peripheral/{BALLOON}"
        actual = await _ask(self._client, "query-balloon")
        found = await _ask(self._client, "qom-get", {"path": path, "property": "guest-stats"})
        update, stats = int(found["last-update"]), found["stats"]
        if update != self._update:
            self._update, self._heard = update, time.monotonic()

        def known(name: str) -> int | None:
            value = int(stats.get(name, _UNKNOWN))
            return None if value in (_UNKNOWN, -1) else value

        return _Memory(
            int(actual["actual"]),
            known("stat-available-memory") or known("stat-free-memory"),
            known("stat-total-memory"),
            self._heard,
        )


def _on_host(machine: ProcessId, log: Path) -> tuple[float, int]:
    """CPU seconds and resident bytes (proc(5): stat fields 14, 15 and 24); also keeps QEMU's log from growing."""
    with contextlib.suppress(OSError):
        if log.stat().st_size > _LOG_MAX:
            os.truncate(log, 0)
    text = Path(f"/proc/{machine.pid}/stat").read_bytes()
    fields = text[text.rindex(b")") + 2 :].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS, int(fields[21]) * _PAGE
