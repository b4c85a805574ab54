# SPDX-License-Identifier: AGPL-3.0-or-later
"""The hook script of a guest: a snippet that runs on the host, as root, when the guest starts or stops.

Only root@pam can give a guest one. It is called with the guest's number and the phase: pre-start, post-start, pre-stop,
post-stop. A failure before the start keeps the guest from starting; any other is a warning.
"""

import os

from orrery.errors import Failure, OrreryError
from orrery.model.guest import GuestConfig, GuestKind
from orrery.operations.context import NodeContext
from orrery.operations.guest_kind import release
from orrery.system import process
from orrery.tasks.operation import TaskHandle

HOOK_SECONDS = 600.0


def run_hook(ctx: NodeContext, task: TaskHandle, vmid: int, config: GuestConfig, phase: str) -> None:
    """Runs the script if the guest has one. Raises `Failure` in phase pre-start only."""
    volume = config.options.get("hookscript")
    if volume is None:
        return
    try:
        storage, name = ctx.storages.volume(volume)
        if storage.info(name).content != "snippets":
            raise Failure(f"'{volume}' is not a snippet")
        path = storage.path(name)
        if not os.access(path, os.X_OK):
            raise Failure(f"'{volume}' is not executable")
        done = process.run([str(path), str(vmid), phase], name=f"hook script {phase}", timeout=HOOK_SECONDS)
        for line in done.stdout.decode(errors="replace").splitlines():
            task.log(line)
    except OrreryError as error:
        if phase == "pre-start":
            raise Failure(f"hook script: {error.message}") from error
        task.warn(f"hook script in phase {phase}: {error.message}")


def finish_run(ctx: NodeContext, task: TaskHandle, vmid: int, kind: GuestKind, config: GuestConfig) -> None:
    """Tidies up after a guest that had ended by itself, and tells its script; for one that does not run."""
    if ctx.paths.guest_run(vmid).is_dir():
        release(ctx, vmid, kind)
        run_hook(ctx, task, vmid, config, "post-stop")
