# SPDX-License-Identifier: AGPL-3.0-or-later
"""Starting guests with the host: in their order, with the pauses that they ask for, once per boot."""

import time

import structlog

from orrery.errors import OrreryError
from orrery.model.devices import Startup, parse_startup
from orrery.model.identity import Identity
from orrery.operations.context import NodeContext
from orrery.operations.guest_power import StartMachine
from orrery.store.guests import read_guests
from orrery.system import host
from orrery.system.files import write_atomic
from orrery.system.paths import Paths
from orrery.tasks.runner import Runner

START_SECONDS = 300.0
"""How long one guest's start may hold up the next."""

log = structlog.get_logger()


def first_start_since_boot(paths: Paths) -> bool:
    """Whether no node of this root has started its guests since the host booted; from now on one has."""
    boot = host.boot_id()
    if paths.boot_file.exists() and paths.boot_file.read_text().strip() == boot:
        return False
    write_atomic(paths.boot_file, f"{boot}\n".encode(), 0o600)
    return True


def to_start(ctx: NodeContext) -> list[tuple[int, Startup]]:
    """The machines of the node that are to start with the host and do not run, in order, those without one last."""
    found = [
        (guest.record.vmid, parse_startup(guest.record.config.options.get("startup", "")))
        for guest in read_guests(ctx.store)
        if guest.record.kind == "qemu"
        and guest.record.node == ctx.node
        and guest.record.config.options.get("onboot") == "1"
        and ctx.machines.find(guest.record.vmid) is None
    ]
    return sorted(found, key=lambda each: (each[1].order is None, each[1].order or 0, each[0]))


def start_all(ctx: NodeContext, runner: Runner, identity: Identity) -> None:
    """Starts them one after the other, each by a task of its own; one that cannot start keeps no other from it."""
    for vmid, place in to_start(ctx):
        try:
            runner.wait(runner.start(StartMachine(vmid), identity), START_SECONDS)
        except OrreryError as error:
            log.error("a guest could not be started with the host", vmid=vmid, reason=error.message)
        time.sleep(place.up or 0)
