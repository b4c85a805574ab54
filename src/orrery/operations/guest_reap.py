# SPDX-License-Identifier: AGPL-3.0-or-later
"""Tidies up after guests that ended by themselves: no task was there to do it."""

from collections.abc import Mapping

import structlog

from orrery.errors import Locked, OrreryError
from orrery.model.guest import GuestKind
from orrery.model.identity import ROOT, Identity
from orrery.operations.container_power import StartContainer, StopContainer
from orrery.operations.context import NodeContext
from orrery.operations.guest_kind import KINDS, driver_of, release
from orrery.operations.guest_lock import guest_lock
from orrery.operations.guest_power import StopMachine
from orrery.store.guests import find_guest
from orrery.tasks.journal import Journal
from orrery.tasks.runner import Runner

log = structlog.get_logger()

STOP: Mapping[GuestKind, type[StopMachine] | type[StopContainer]] = {"qemu": StopMachine, "lxc": StopContainer}


def reap(ctx: NodeContext, journal: Journal, runner: Runner) -> list[int]:
    """Removes what guests that have ended left behind; their numbers. What a task works on is left to the task.

    A guest with a hook script is left to a task of its own, since scripts may take long.
    """
    reaped = []
    for kind in KINDS:
        for vmid in driver_of(ctx, kind).leftovers():
            try:
                with journal.locked(guest_lock(vmid), wait=0):
                    if driver_of(ctx, kind).find(vmid) is not None:
                        continue
                    again = kind == "lxc" and ctx.containers.wants_restart(vmid)
                    hooked = has_hook(ctx, vmid, kind)
                    if not hooked and not again:
                        release(ctx, vmid, kind)
            except Locked:
                continue
            reaped.append(vmid)
            log.info("guest ended", kind=kind, vmid=vmid)
            if again:
                start_again(ctx, runner, vmid)
            elif hooked:
                start_stop(runner, vmid, kind)
    return reaped


def has_hook(ctx: NodeContext, vmid: int, kind: GuestKind) -> bool:
    """Whether a script wants to know that the guest has ended."""
    found = find_guest(ctx.store, vmid)
    if found is None or (found.record.kind, found.record.node) != (kind, ctx.node):
        return False
    return "hookscript" in found.record.config.options


def start_again(ctx: NodeContext, runner: Runner, vmid: int) -> None:
    """Begins the task that starts a container whose system asked for a restart after it had been changed.

    One that cannot begin is tried again; one that fails is not.
    """
    try:
        runner.start(StartContainer(vmid, skiplock=True), Identity(ROOT))
    except OrreryError as error:
        log.error("a container that restarts could not be started again", vmid=vmid, reason=error.message)
    else:
        ctx.containers.forget_restart(vmid)


def start_stop(runner: Runner, vmid: int, kind: GuestKind) -> None:
    """Begins the task that tidies up and calls the script; one that cannot begin is tried again."""
    try:
        runner.start(STOP[kind](vmid, skiplock=True), Identity(ROOT))
    except OrreryError as error:
        log.error("the end of a guest could not be told to its hook script", vmid=vmid, reason=error.message)
