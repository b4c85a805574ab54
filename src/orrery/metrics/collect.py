# SPDX-License-Identifier: AGPL-3.0-or-later
"""What node, guests and storages are doing, sampled at an interval into memory: lists are answered from here.

Whether a guest runs is looked up when asked, since clients list right after a start; everything that changes slowly, or
costs a conversation with a machine, comes from the last sample.
"""

import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import structlog

from orrery.errors import OrreryError
from orrery.metrics.facts import FactsCache
from orrery.store.base import Store
from orrery.system import host
from orrery.system.process import ProcessId

INTERVAL = 10.0
"""Seconds between two samples."""

HERTZ = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class MachineState:
    """What a machine tells of itself: `mem` is the guest's use if known, all in bytes, counters since its start."""

    status: str = "running"
    mem: int | None = None
    diskread: int = 0
    diskwrite: int = 0
    version: Mapping[str, str] = field(default_factory=dict)


class Machines(Protocol):
    """The driver as the collector needs it."""

    def running(self) -> Mapping[int, ProcessId]: ...


class ContainerState(Protocol):
    """What a container uses: nanoseconds of processor time since its start, the rest in bytes."""

    @property
    def cpu(self) -> int: ...
    @property
    def memory(self) -> int: ...
    @property
    def swap(self) -> int: ...
    @property
    def disk(self) -> int: ...
    @property
    def disk_size(self) -> int: ...
    @property
    def disk_read(self) -> int: ...
    @property
    def disk_written(self) -> int: ...


class Containers(Protocol):
    """The driver of containers as the collector needs it."""

    def running(self) -> Mapping[int, ProcessId]: ...

    def usage(self, vmid: int) -> ContainerState: ...


class Probe(Protocol):
    """What follows the machines' own reports."""

    def state(self, vmid: int) -> MachineState | None: ...


class Counters(Protocol):
    """Bytes that came in and went out of each guest since its start, as the guest sees it."""

    def guest_counters(self) -> Mapping[int, tuple[int, int]]: ...


@dataclass(frozen=True, slots=True)
class GuestSample:
    """One running guest: `cpu` as a fraction of its processors, sizes and counters in bytes, `uptime` in seconds."""

    pid: int
    uptime: int
    cpu: float = 0.0
    mem: int = 0
    memhost: int = 0
    netin: int = 0
    netout: int = 0
    diskread: int = 0
    diskwrite: int = 0
    qmpstatus: str = "running"
    version: Mapping[str, str] = field(default_factory=dict)
    swap: int = 0
    disk: int = 0
    """Of containers alone: swap in use, and what is used of the root file system."""


@dataclass(frozen=True, slots=True)
class NodeSample:
    """The node: `cpu` and `wait` as fractions of all processors, sizes in bytes, `uptime` in seconds."""

    maxcpu: int
    cpu: float
    wait: float
    maxmem: int
    mem: int
    freemem: int
    availmem: int
    maxswap: int
    swap: int
    maxdisk: int
    disk: int
    availdisk: int
    uptime: int


@dataclass(slots=True)
class _Measured:
    process: ProcessId
    busy: float
    """Seconds of processor time since its start."""
    at: float
    sample: GuestSample


class Collector:
    """Samples in a thread of its own; every method may be called from any thread."""

    def __init__(
        self,
        store: Store,
        machines: Machines,
        containers: Containers,
        counters: Counters,
        probe: Probe,
        storages: Any,
        *,
        interval: float = INTERVAL,
    ) -> None:
        self.facts = FactsCache(store)
        self.storages = storages
        self._machines = machines
        self._containers = containers
        self._counters = counters
        self._probe = probe
        self._interval = interval
        self._lock = threading.Lock()
        self._measured: dict[int, _Measured] = {}
        self._times = host.cpu_times()
        self._node = self._sample_node()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="collector", daemon=True)

    def start(self) -> None:
        """Begins to sample."""
        self._thread.start()

    def stop(self) -> None:
        """Ends sampling."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(self._interval)

    def node(self) -> NodeSample:
        """The node at the last sample."""
        return self._node

    def samples(self) -> dict[int, GuestSample]:
        """All guests that run now, with their last sample."""
        return {vmid: self._current(vmid, found) for vmid, found in self._running().items()}

    def sample(self, vmid: int) -> GuestSample | None:
        """One guest, None when it does not run."""
        found = self._running().get(vmid)
        return None if found is None else self._current(vmid, found)

    def _running(self) -> dict[int, ProcessId]:
        return {**self._machines.running(), **self._containers.running()}

    def _current(self, vmid: int, found: ProcessId) -> GuestSample:
        known = self._measured.get(vmid)
        if known is None or known.process != found:
            return GuestSample(found.pid, _uptime(found))
        return known.sample

    def _run(self) -> None:
        self.collect()
        while not self._stop.wait(self._interval):
            self.collect()

    def collect(self) -> None:
        """Takes one sample of everything; what cannot be read keeps its last value."""
        with self._lock:
            for part in (self._collect_node, self._collect_guests, self.storages.refresh):
                self._try(part)

    def _try(self, part: Callable[[], None]) -> None:
        try:
            part()
        except (OrreryError, OSError) as error:
            log.warning("sample failed", error=str(error))

    def _collect_node(self) -> None:
        self._node = self._sample_node()

    def _sample_node(self) -> NodeSample:
        times = host.cpu_times()
        busy, wait = times.used_since(self._times)
        self._times = times
        memory, disk = host.memory(), host.root_space()
        return NodeSample(
            maxcpu=host.cpu().count,
            cpu=busy,
            wait=wait,
            maxmem=memory.total,
            mem=memory.used,
            freemem=memory.free,
            availmem=memory.available,
            maxswap=memory.swap_total,
            swap=memory.swap_used,
            maxdisk=disk.total,
            disk=disk.used,
            availdisk=disk.available,
            uptime=int(host.uptime()),
        )

    def _collect_guests(self) -> None:
        counters = self._counters.guest_counters()
        # Read also when nothing runs: of thousands it takes a second, for which no list shall have to wait.
        processors = {guest.vmid: guest.maxcpu for guest in self.facts.all()}
        fresh: dict[int, _Measured] = {}
        for vmid, found in self._machines.running().items():
            measured = self._measure(vmid, found, counters.get(vmid, (0, 0)), processors.get(vmid, 1))
            if measured is not None:
                fresh[vmid] = measured
        for vmid, found in self._containers.running().items():
            measured = self._measure_container(vmid, found, counters.get(vmid, (0, 0)), processors.get(vmid, 1))
            if measured is not None:
                fresh[vmid] = measured
        self._measured = fresh

    def _measure(self, vmid: int, found: ProcessId, net: tuple[int, int], processors: int) -> _Measured | None:
        try:
            ticks, resident = _usage(found.pid)
        except OSError:
            return None  # it ended just now
        now, busy = time.monotonic(), ticks / HERTZ
        state = self._probe.state(vmid) or MachineState()
        sample = GuestSample(
            pid=found.pid,
            uptime=_uptime(found),
            cpu=self._load(vmid, found, busy, now, processors),
            mem=resident if state.mem is None else state.mem,
            memhost=resident,
            netin=net[0],
            netout=net[1],
            diskread=state.diskread,
            diskwrite=state.diskwrite,
            qmpstatus=state.status,
            version=state.version,
        )
        return _Measured(found, busy, now, sample)

    def _load(self, vmid: int, found: ProcessId, busy: float, now: float, processors: int) -> float:
        """Part of its processors that a guest has used since the last sample."""
        before = self._measured.get(vmid)
        if before is None or before.process != found or now <= before.at:
            return 0.0
        return round(min(max(0.0, busy - before.busy) / (now - before.at) / max(1, processors), 1.0), 6)

    def _measure_container(
        self, vmid: int, found: ProcessId, net: tuple[int, int], processors: int
    ) -> _Measured | None:
        try:
            state = self._containers.usage(vmid)
        except (OrreryError, OSError):
            return None  # it ended just now
        now, busy = time.monotonic(), state.cpu / 1e9
        sample = GuestSample(
            pid=found.pid,
            uptime=_uptime(found),
            cpu=self._load(vmid, found, busy, now, processors),
            mem=state.memory,
            memhost=state.memory,
            netin=net[0],
            netout=net[1],
            diskread=state.disk_read,
            diskwrite=state.disk_written,
            swap=state.swap,
            disk=state.disk,
        )
        return _Measured(found, busy, now, sample)


def _usage(pid: int) -> tuple[int, int]:
    """Clock ticks of processor time (user and system, fields 14 and 15 of stat) and resident bytes of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE
    return int(fields[11]) + int(fields[12]), resident


def _uptime(found: ProcessId) -> int:
    """Seconds since a process started."""
    return max(0, int(host.uptime() - found.start / HERTZ))
