# SPDX-License-Identifier: AGPL-3.0-or-later
"""The service that tells programs in containers what they may use: started with the first container, kept alive."""

import structlog

from orrery.drivers.lxc.lxcfs import LxcfsService
from orrery.errors import OrreryError
from orrery.operations.context import NodeContext
from orrery.system.files import FileLock
from orrery.tasks.operation import TaskHandle

LOCK_SECONDS = 30.0

log = structlog.get_logger()


def need_lxcfs(ctx: NodeContext, task: TaskHandle) -> None:
    """Sees to it that the service runs. A host without it is no reason for a container not to start."""
    try:
        with FileLock(ctx.paths.lxcfs_lock, LOCK_SECONDS):
            LxcfsService(ctx.paths).start()
    except OrreryError as error:
        task.log(f"programs inside will see memory and processors of the host: {error.message}")


def keep_lxcfs(ctx: NodeContext) -> None:
    """Starts the service again when it has died while containers run, and mends these."""
    pids = [pid for vmid in ctx.containers.running() if (pid := ctx.containers.init_pid(vmid)) is not None]
    if not pids:
        return
    with FileLock(ctx.paths.lxcfs_lock, LOCK_SECONDS):
        notes = LxcfsService(ctx.paths).maintain(pids)
    for note in notes:
        log.warning("lxcfs", note=note)
