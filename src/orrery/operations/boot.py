# SPDX-License-Identifier: AGPL-3.0-or-later
"""Starting guests with the host: in their order, with the pauses that they ask for, once per boot."""

import time
from collections.abc import Iterable, Mapping

import structlog

from orrery.errors import OrreryError
from orrery.model.devices import Startup, parse_startup
from orrery.model.guest import GuestKind, GuestRecord
from orrery.model.identity import Identity
from orrery.operations.container_power import StartContainer
from orrery.operations.context import NodeContext
from orrery.operations.guest_kind import driver_of
from orrery.operations.guest_power import StartMachine
from orrery.store.guests import read_guests
from orrery.system import host
from orrery.system.files import write_atomic
from orrery.system.paths import Paths
from orrery.tasks.runner import Runner

START_SECONDS = 300.0
"""How long one guest's start may hold up the next."""

START: Mapping[GuestKind, type[StartMachine] | type[StartContainer]] = {"qemu": StartMachine, "lxc": StartContainer}

log = structlog.get_logger()


def first_start_since_boot(paths: Paths) -> bool:
    """Whether no node of this root has started its guests since the host booted; from now on one has."""
    boot = host.boot_id()
    if paths.boot_file.exists() and paths.boot_file.read_text().strip() == boot:
        return False
    write_atomic(paths.boot_file, f"{boot}\n".encode(), 0o600)
    return True


def place_of(record: GuestRecord) -> Startup:
    """When a guest starts and ends among the others, as its option `startup` says."""
    return parse_startup(record.config.options.get("startup", ""))


def in_order(records: Iterable[GuestRecord]) -> list[GuestRecord]:
    """Guests in the order in which they start, those without one last; they end in reverse."""

    def key(record: GuestRecord) -> tuple[bool, int, int]:
        order = place_of(record).order
        return (order is None, order or 0, record.vmid)

    return sorted(records, key=key)


def to_start(ctx: NodeContext) -> list[GuestRecord]:
    """The guests of the node that are to start with the host and do not run, in order."""
    return in_order(
        guest.record
        for guest in read_guests(ctx.store)
        if guest.record.node == ctx.node
        and guest.record.config.options.get("onboot") == "1"
        and driver_of(ctx, guest.record.kind).find(guest.record.vmid) is None
    )


def start_all(ctx: NodeContext, runner: Runner, identity: Identity) -> None:
    """Starts them one after the other, each by a task of its own; one that cannot start keeps no other from it."""
    for record in to_start(ctx):
        try:
            runner.wait(runner.start(START[record.kind](record.vmid), identity), START_SECONDS)
        except OrreryError as error:
            log.error("a guest could not be started with the host", vmid=record.vmid, reason=error.message)
        time.sleep(place_of(record).up or 0)
