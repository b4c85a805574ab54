# SPDX-License-Identifier: AGPL-3.0-or-later
"""`orrery down`: ends a node with all that outlives `orrery serve`: its guests, its tasks, its network."""

import contextlib
import signal
import time
from pathlib import Path

import typer

from orrery.errors import Failure, OrreryError
from orrery.front.supervise import end_leftover
from orrery.operations.context import NodeContext, open_context
from orrery.operations.guest_kind import release
from orrery.system import process
from orrery.system.files import read_json
from orrery.system.paths import Paths
from orrery.tasks.journal import Journal

DAEMON_SECONDS = 20.0
TASK_SECONDS = 10.0
GUEST_SECONDS = 30.0


def command(
    root: Path | None = typer.Option(None, envvar="ORRERY_ROOT", help="Folder of the node."),
    timeout: float = typer.Option(GUEST_SECONDS, help="Seconds that guests get to shut down before they are ended."),
) -> None:
    """Stop the node, its guests and its network. What is stored stays.

    Example:  orrery down --root /srv/orrery
    """
    paths = Paths.of(root)
    if not paths.node_json.exists():
        typer.echo("there is no node here")
        return
    name = str(read_json(paths.node_json)["node"])
    end_daemon(paths)
    end_leftover(paths)
    end_tasks(paths)
    ctx = open_context(paths, name)
    end_guests(ctx, timeout)
    for note in ctx.network.remove():
        typer.echo(note)
    typer.echo(f"node '{name}' is down")


def end_daemon(paths: Paths) -> None:
    """Ends `orrery serve`, whose pid stands in its lock file while it holds it."""
    try:
        pid = int(paths.serve_lock.read_text())
    except (OSError, ValueError):
        return
    found = process.identity(pid)
    if found is None or not holds(paths.serve_lock, pid):
        return
    process.signal(found, signal.SIGTERM)
    if not process.wait(found, DAEMON_SECONDS):
        raise Failure(f"`orrery serve` (process {pid}) has not ended within {DAEMON_SECONDS:.0f} s")


def holds(lock: Path, pid: int) -> bool:
    """Whether a process has this file open, so that an old pid in it is not taken for another program."""
    with contextlib.suppress(OSError):
        return any(each.exists() and each.samefile(lock) for each in Path(f"/proc/{pid}/fd").iterdir())
    return False


def end_tasks(paths: Paths) -> None:
    """Asks running tasks to stop; those that do not are killed, and undone when the node starts again."""
    journal = Journal(paths.tasks_db, paths.task_logs)
    for record in journal.open_tasks():
        if record.running and journal.alive(record):
            with contextlib.suppress(OrreryError):
                journal.request_cancel(record.upid)
            process.signal(record.worker, signal.SIGINT)
            if not process.wait(record.worker, TASK_SECONDS):
                process.signal(record.worker, signal.SIGKILL)


def end_guests(ctx: NodeContext, timeout: float) -> None:
    """Shuts all guests down together; those that have not ended in time are ended."""
    running = dict(ctx.machines.running())
    for vmid in running:
        with contextlib.suppress(OrreryError):
            ctx.machines.powerdown(vmid)
    end = time.monotonic() + timeout
    for vmid, found in running.items():
        if not process.wait(found, max(0.0, end - time.monotonic())):
            typer.echo(f"VM {vmid} has not shut down and is ended")
            ctx.machines.kill(vmid)
    for vmid in ctx.machines.leftovers():
        release(ctx, vmid, "qemu")
