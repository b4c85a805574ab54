# SPDX-License-Identifier: AGPL-3.0-or-later
"""Has running machines give memory while the host runs short of it, and gives it back: one step at each sample.

A machine takes part when its `balloon` lies below its memory, its `shares` are not 0, it runs, and its guest has told
of its memory lately: who does not listen would not follow either.
"""

import time
from collections.abc import Callable, Mapping
from typing import Final, Protocol

import structlog

from orrery.drivers.qemu.watcher import Sample
from orrery.errors import OrreryError
from orrery.metrics.facts import MIB, memory_bytes
from orrery.model.ballooning import DEFAULT_SHARES, GOAL, Ballooned, targets
from orrery.store.base import Entry, Store
from orrery.store.guests import decode_guest, guest_key
from orrery.system import host

LATELY: Final = 30.0
"""Seconds: guests tell of their memory every 5, and samples are taken every 10."""

Limits = tuple[int, int, int]
"""Least and most memory in bytes, and shares."""

log = structlog.get_logger()


class Reports(Protocol):
    """What follows the machines."""

    def samples(self) -> Mapping[int, Sample]: ...

    def set_balloon(self, vmid: int, size: int) -> None: ...


class Ballooning:
    """Call `step` at an interval, from one thread at a time. `memory` and `clock` (monotonic) are the host's."""

    def __init__(
        self,
        store: Store,
        reports: Reports,
        memory: Callable[[], host.Memory] = host.memory,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._reports = reports
        self._memory = memory
        self._clock = clock
        self._known: dict[int, tuple[int, Limits | None]] = {}
        self._short = False

    def step(self) -> None:
        """Looks at the host and moves the balloons that have to move."""
        machines = self._machines()
        memory = self._memory()
        wanted = targets(machines, memory.total, memory.used)
        self._tell(memory, len(wanted))
        for vmid, size in wanted.items():
            try:
                self._reports.set_balloon(vmid, size)
            except OrreryError as error:
                log.debug("a balloon did not move", vmid=vmid, reason=error.message)

    def _tell(self, memory: host.Memory, machines: int) -> None:
        short = memory.used > memory.total * GOAL and machines > 0
        if short != self._short:
            self._short = short
            share = round(memory.used / memory.total, 3)
            log.info("machines give memory to the host" if short else "machines may keep their memory", used=share)

    def _machines(self) -> list[Ballooned]:
        now = self._clock()
        found = []
        samples = self._reports.samples()
        for vmid, sample in samples.items():
            if sample.balloon is None or sample.state != "running" or not _lately(sample, now):
                continue
            limits = self._limits(vmid)
            if limits is not None:
                low, high, shares = limits
                found.append(Ballooned(vmid, low, high, sample.balloon, shares))
        self._known = {vmid: known for vmid, known in self._known.items() if vmid in samples}
        return found

    def _limits(self, vmid: int) -> Limits | None:
        """Between which sizes the machine may move; None when its configuration lets it not."""
        entry = self._store.get(guest_key(vmid))
        if entry is None:
            return None
        known = self._known.get(vmid)
        if known is None or known[0] != entry.revision:
            known = self._known[vmid] = entry.revision, _readable(vmid, entry)
        return known[1]


def _readable(vmid: int, entry: Entry) -> Limits | None:
    """The limits of a stored guest; one whose configuration cannot be read keeps no other from giving memory."""
    try:
        return limits(decode_guest(entry).record.config.options)
    except (OrreryError, ValueError) as error:
        log.warning("a machine gives no memory: its configuration cannot be read", vmid=vmid, reason=str(error))
        return None


def limits(options: Mapping[str, str]) -> Limits | None:
    """Between which sizes these options let a machine move; None when they do not let it move at all."""
    most = memory_bytes(options.get("memory"))
    least = int(options.get("balloon", "0")) * MIB
    shares = int(options.get("shares", str(DEFAULT_SHARES)))
    return (least, most, shares) if 0 < least < most and shares else None


def _lately(sample: Sample, now: float) -> bool:
    return sample.heard is not None and now - sample.at <= LATELY and now - sample.heard <= LATELY
