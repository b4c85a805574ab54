# SPDX-License-Identifier: AGPL-3.0-or-later
"""`orrery task`: tasks."""

import time

import typer

from orrery.cli.client import POLL_SECONDS
from orrery.cli.verbs import Columns, Session, moment, verb
from orrery.errors import Failure

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

UPID = typer.Argument(..., help="Identifier of the task.")
COLUMNS: Columns = {
    "BEGUN": moment("starttime"),
    "ENDED": moment("endtime"),
    "TYPE": "type",
    "ID": "id",
    "USER": "user",
    "STATUS": lambda row: row.get("status", "running"),
    "UPID": "upid",
}


def where(upid: str) -> str:
    """Path of a task. Raises `Failure` for what is no identifier."""
    parts = upid.split(":")
    if len(parts) != 9 or parts[0] != "UPID":
        raise Failure(f"'{upid}' is not the identifier of a task")
    return f"/nodes/{parts[1]}/tasks/{upid}"


@verb(app, "list")
def list_(
    session: Session,
    vmid: int | None = typer.Option(None, help="Only tasks of this guest."),
    kind: str | None = typer.Option(None, "--type", help="Only tasks of this type."),
    running: bool = typer.Option(False, "--running", help="Only tasks that run."),
    errors: bool = typer.Option(False, "--errors", help="Only tasks that did not end well."),
    limit: int = typer.Option(50, help="How many at most."),
) -> None:
    """List tasks, newest first.

    Example:  orrery task list --vmid 100 --errors
    """
    source = "active" if running else "all"
    rows = session.get(f"{session.node}/tasks", vmid=vmid, typefilter=kind, errors=errors, limit=limit, source=source)
    session.table(rows, COLUMNS)


@verb(app)
def status(session: Session, upid: str = UPID) -> None:
    """Show the state of a task."""
    session.facts(session.get(where(upid) + "/status"))


@verb(app)
def log(session: Session, upid: str = UPID) -> None:
    """Print a task's log."""
    where(upid)
    session.print_log(upid)


@verb(app)
def follow(session: Session, upid: str = UPID) -> None:
    """Print a task's log as it grows; ends with the task, and fails if it did."""
    shown = 0
    while True:
        state = session.get(where(upid) + "/status")
        shown = session.print_log(upid, start=shown)
        if state["status"] == "stopped":
            session.client.wait(upid)
            return
        time.sleep(POLL_SECONDS)


@verb(app)
def stop(session: Session, upid: str = UPID) -> None:
    """Ask a task to stop; what it has done so far is undone."""
    session.delete(where(upid))
