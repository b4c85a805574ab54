# SPDX-License-Identifier: AGPL-3.0-or-later
"""`orrery down`: ends a node with all that outlives `orrery serve`: its guests, its tasks, its network."""

import contextlib
import itertools
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import typer

from orrery.drivers.lxc.lxcfs import LxcfsService
from orrery.errors import Failure, OrreryError
from orrery.front.supervise import end_leftover
from orrery.model.guest import GuestKind, GuestRecord
from orrery.operations.boot import place_of
from orrery.operations.context import NodeContext, open_context
from orrery.operations.guest_kind import KINDS, driver_of, release
from orrery.operations.guest_lock import NOUNS
from orrery.store.guests import read_guests
from orrery.system import process
from orrery.system.files import read_json
from orrery.system.paths import Paths
from orrery.tasks.journal import Journal

DAEMON_SECONDS = 20.0
TASK_SECONDS = 10.0
GUEST_SECONDS = 30.0

Guest = tuple[GuestKind, int]


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
    problems: list[OrreryError] = []
    steps: list[Callable[[], None]] = [
        lambda: end_guests(ctx, timeout),
        LxcfsService(paths).stop,
        lambda: remove_network(ctx),
    ]
    for step in steps:
        try:
            step()
        except OrreryError as error:  # such as a disk that cannot be written to: the rest can be ended all the same
            problems.append(error)
    if problems:
        raise problems[0]
    typer.echo(f"node '{name}' is down")


def remove_network(ctx: NodeContext) -> None:
    """Removes the bridge and its services where they are this node's, and tells what stays."""
    for note in ctx.network.remove():
        typer.echo(note)


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
    """Shuts all guests down, in the reverse of the order in which they start; those of one place together.

    A guest gets as many seconds as its option `startup` says, else `timeout`, then it is ended; with a timeout of 0
    all are ended at once.
    """
    stored = {guest.record.vmid: guest.record for guest in read_guests(ctx.store)}
    running = {(kind, vmid): found for kind in KINDS for vmid, found in driver_of(ctx, kind).running().items()}
    for place in places(running, stored):
        asked = [each for each in place if timeout > 0 and ask_to_end(ctx, *each)]
        begun = time.monotonic()
        for kind, vmid in place:
            record = stored.get(vmid)
            limit = (record and place_of(record).down) or timeout
            left = begun + limit - time.monotonic() if (kind, vmid) in asked else 0.0
            if not process.wait(running[kind, vmid], max(0.0, left)):
                typer.echo(f"{NOUNS[kind]} {vmid} has not shut down and is ended")
                end_at_once(ctx, kind, vmid)
    for kind in KINDS:
        for vmid in driver_of(ctx, kind).leftovers():
            release(ctx, vmid, kind)


def places(running: Iterable[tuple[GuestKind, int]], stored: Mapping[int, GuestRecord]) -> list[list[Guest]]:
    """Running guests by their place in the order, the last to start first."""

    def order(guest: Guest) -> float:
        record = stored.get(guest[1])
        found = place_of(record).order if record else None
        return float("inf") if found is None else found

    ordered = sorted(running, key=lambda guest: (-order(guest), guest[1]))
    return [list(group) for _, group in itertools.groupby(ordered, key=order)]


def ask_to_end(ctx: NodeContext, kind: GuestKind, vmid: int) -> bool:
    """Presses a machine's power button, or tells a container's init; whether that was possible."""
    try:
        if kind == "qemu":
            ctx.machines.powerdown(vmid)
        else:
            if ctx.containers.state(vmid) == "frozen":
                ctx.containers.thaw(vmid)
            ctx.containers.ask_to_stop(vmid)
    except OrreryError:
        return False
    return True


def end_at_once(ctx: NodeContext, kind: GuestKind, vmid: int) -> None:
    """Ends a guest without asking it."""
    if kind == "qemu":
        ctx.machines.kill(vmid)
    else:
        ctx.containers.stop(vmid, 0)
