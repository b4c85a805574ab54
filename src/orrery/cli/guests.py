# SPDX-License-Identifier: AGPL-3.0-or-later
"""`orrery guests`: many guests of a node at once, machines and containers alike."""

import typer

from orrery.cli import completion
from orrery.cli.verbs import Columns, Session, verb

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

SOME = typer.Argument(None, help="Only these guests.", autocompletion=completion.vmids)
WORKERS = typer.Option(None, help="How many at once.")


@verb(app, "list")
def list_(session: Session) -> None:
    """List machines and containers that you may see, on all nodes."""
    columns: Columns = {"VMID": "vmid", "TYPE": "type", "NAME": "name", "NODE": "node", "STATUS": "status"}
    session.table(session.get("/cluster/resources", type="vm"), columns)


@verb(app)
def start(
    session: Session,
    vmid: list[int] | None = SOME,
    everyone: bool = typer.Option(False, "--all", help="Also those that do not start with the host."),
    workers: int | None = WORKERS,
) -> None:
    """Start guests in their order: those named, or those that start with the host.

    Example:  orrery guests start 100 101 102
    """
    force = everyone or bool(vmid)
    session.follow(session.post(f"{session.node}/startall", vms=_listed(vmid), force=force, max_workers=workers))


@verb(app)
def stop(
    session: Session,
    vmid: list[int] | None = SOME,
    timeout: int | None = typer.Option(None, help="Seconds for each to shut down; 0 pulls the plug."),
    workers: int | None = WORKERS,
) -> None:
    """Shut guests down, the last to start first.

    Example:  orrery guests stop --timeout 60
    """
    session.follow(session.post(f"{session.node}/stopall", vms=_listed(vmid), timeout=timeout, max_workers=workers))


@verb(app)
def suspend(session: Session, vmid: list[int] | None = SOME, workers: int | None = WORKERS) -> None:
    """Suspend guests that run."""
    session.follow(session.post(f"{session.node}/suspendall", vms=_listed(vmid), max_workers=workers))


def _listed(vmids: list[int] | None) -> str | None:
    return ",".join(map(str, vmids)) if vmids else None
