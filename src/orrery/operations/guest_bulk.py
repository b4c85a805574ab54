# SPDX-License-Identifier: AGPL-3.0-or-later
"""Verbs about many guests: each by a task of its own, a few at once, in the order that their `startup` options ask for.

Guests of the same place in that order go side by side. One that fails keeps no other from its turn: it is a warning in
the log of the whole. Whoever cancels the whole keeps what has begun, and begins no more.
"""

import itertools
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from orrery.errors import Failure, OrreryError
from orrery.model.guest import GuestRecord
from orrery.model.options import cluster_options
from orrery.operations.boot import in_order, place_of
from orrery.operations.container_power import ShutdownContainer, StartContainer, StopContainer, SuspendContainer
from orrery.operations.context import NodeContext
from orrery.operations.guest_kind import driver_of
from orrery.operations.guest_power import ShutdownMachine, StartMachine, StopMachine, SuspendMachine
from orrery.store.documents import read_document
from orrery.store.guests import read_guests
from orrery.tasks.operation import Operation, TaskHandle
from orrery.tasks.registry import operation
from orrery.tasks.task import Upid

STOP_SECONDS = 180
LOCK_SECONDS = 10.0
_LOOK_SECONDS = 0.5
"""Between two looks at whether the whole was cancelled."""


@dataclass(frozen=True)
class GuestsVerb:
    """What all have in common. `vmids`: only these of the node's guests; `workers`: how many at once, 0 as usual."""

    vmids: tuple[int, ...] | None = None
    workers: int = 0

    def subject(self) -> str:
        return ""

    def locks(self) -> tuple[str, ...]:
        return ()

    def check(self, ctx: NodeContext) -> None:
        """Raises `Failure` for numbers that no guest of this node has."""
        missing = set(self.vmids or ()) - {record.vmid for record in guests_of(ctx)}
        if missing:
            raise Failure(f"guest {min(missing)} does not exist on node '{ctx.node}'")

    def chosen(self, ctx: NodeContext, *, running: bool) -> list[GuestRecord]:
        """The guests that are meant and (do not) run, in the order in which they start."""
        return in_order(
            record
            for record in guests_of(ctx)
            if (self.vmids is None or record.vmid in self.vmids)
            and not record.config.is_template
            and (driver_of(ctx, record.kind).find(record.vmid) is not None) is running
        )

    def at_once(self, ctx: NodeContext) -> int:
        """How many guests may have their turn at the same time."""
        usual = cluster_options(read_document(ctx.store, "/cluster/options") or {}).values.get("max_workers")
        return self.workers or int(usual or 0) or max(2, os.cpu_count() or 1)


def guests_of(ctx: NodeContext) -> Iterator[GuestRecord]:
    """The guests of this node, of both kinds."""
    return (guest.record for guest in read_guests(ctx.store) if guest.record.node == ctx.node)


@operation
@dataclass(frozen=True)
class StartGuests(GuestsVerb):
    """Starts guests: those that start with the host, or with `force` all that are meant."""

    kind: ClassVar[str] = "startall"

    force: bool = False

    def run(self, ctx: NodeContext, task: TaskHandle) -> None:
        chosen = [
            record
            for record in self.chosen(ctx, running=False)
            if self.force or record.config.options.get("onboot") == "1"
        ]
        workers = self.at_once(ctx)
        for group in _groups(chosen):
            _each(task, [(record, _start(record)) for record in group], workers)
            _pause(task, max(place_of(record).up or 0 for record in group))


@operation
@dataclass(frozen=True)
class StopGuests(GuestsVerb):
    """Shuts guests down, the last to start first; those that do not within `timeout` seconds are stopped if asked."""

    kind: ClassVar[str] = "stopall"

    timeout: int = STOP_SECONDS
    force: bool = True

    def run(self, ctx: NodeContext, task: TaskHandle) -> None:
        workers = self.at_once(ctx)
        for group in reversed(list(_groups(self.chosen(ctx, running=True)))):
            _each(task, [(record, self._stop(record)) for record in group], workers)

    def _stop(self, record: GuestRecord) -> Operation:
        if self.timeout == 0 and self.force:
            return StopMachine(record.vmid) if record.kind == "qemu" else StopContainer(record.vmid)
        patience = place_of(record).down or self.timeout
        if record.kind == "qemu":
            return ShutdownMachine(record.vmid, timeout=patience, force=self.force)
        return ShutdownContainer(record.vmid, timeout=patience, force=self.force)


@operation
@dataclass(frozen=True)
class SuspendGuests(GuestsVerb):
    """Suspends running guests."""

    kind: ClassVar[str] = "suspendall"

    def run(self, ctx: NodeContext, task: TaskHandle) -> None:
        chosen = self.chosen(ctx, running=True)
        verbs = [(each, (SuspendMachine if each.kind == "qemu" else SuspendContainer)(each.vmid)) for each in chosen]
        _each(task, verbs, self.at_once(ctx))


def _start(record: GuestRecord) -> Operation:
    return StartMachine(record.vmid) if record.kind == "qemu" else StartContainer(record.vmid)


def _groups(records: Iterable[GuestRecord]) -> Iterator[list[GuestRecord]]:
    """Those that have the same place in the order, together."""
    for _, group in itertools.groupby(records, lambda record: place_of(record).order):
        yield list(group)


def _each(task: TaskHandle, verbs: Sequence[tuple[GuestRecord, Operation]], workers: int) -> None:
    """Has every guest its turn, `workers` at once, and returns when all had it."""
    waiting = list(reversed(verbs))
    turns: dict[Upid, GuestRecord] = {}
    while waiting or turns:
        task.progress(len(verbs) - len(waiting) - len(turns), len(verbs), "guests")
        while waiting and len(turns) < workers:
            record, verb = waiting.pop()
            try:
                turns[task.beside.start(verb, LOCK_SECONDS)] = record
            except OrreryError as error:
                task.warn(f"guest {record.vmid}: {error.message}")
        for ended in task.beside.wait_any(list(turns), _LOOK_SECONDS) if turns else ():
            record = turns.pop(ended.upid)
            if ended.error is not None:
                task.warn(f"guest {record.vmid}: {ended.status}")
            else:
                task.log(f"guest {record.vmid}: {ended.upid.kind} {ended.status}")


def _pause(task: TaskHandle, seconds: float) -> None:
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        task.progress(0, 0, "guests")
        time.sleep(min(left, _LOOK_SECONDS))
