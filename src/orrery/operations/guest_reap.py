# SPDX-License-Identifier: AGPL-3.0-or-later
"""Tidies up after machines that ended by themselves: no task was there to do it."""

import structlog

from orrery.errors import Locked
from orrery.operations.context import NodeContext
from orrery.operations.guest_lock import guest_lock
from orrery.operations.guest_power import release
from orrery.tasks.journal import Journal

log = structlog.get_logger()


def reap(ctx: NodeContext, journal: Journal) -> list[int]:
    """Removes what machines that have ended left behind; their numbers. What a task works on is left to the task."""
    reaped = []
    for vmid in ctx.machines.leftovers():
        try:
            with journal.locked(guest_lock(vmid), wait=0):
                if ctx.machines.find(vmid) is None:
                    release(ctx, vmid)
                    reaped.append(vmid)
                    log.info("machine ended", vmid=vmid)
        except Locked:
            continue
    return reaped
