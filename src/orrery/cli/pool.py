# SPDX-License-Identifier: AGPL-3.0-or-later
"""`orrery pool`: pools of guests and storages."""

import typer

from orrery.cli import completion
from orrery.cli.verbs import Columns, Session, verb

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

POOL = typer.Argument(..., help="Name of the pool.", autocompletion=completion.pools)
NEW = typer.Argument(..., help="Name of the pool.")
VMS = typer.Option(None, help="Guests, separated by commas.")
STORAGES = typer.Option(None, help="Storages, separated by commas.")


@verb(app, "list")
def list_(session: Session) -> None:
    """List pools."""
    session.table(session.get("/pools"), {"POOL": "poolid", "COMMENT": "comment"})


@verb(app)
def show(session: Session, pool: str = POOL) -> None:
    """List what is in a pool."""
    found = session.get("/pools", poolid=pool)[0]
    columns: Columns = {"TYPE": "type", "ID": "id", "NAME": "name", "NODE": "node", "STATUS": "status"}
    session.table(found.get("members", []), columns)


@verb(app)
def add(session: Session, pool: str = NEW, comment: str | None = typer.Option(None, help="What it is for.")) -> None:
    """Add a pool."""
    session.post("/pools", poolid=pool, comment=comment)


@verb(app)
def remove(session: Session, pool: str = POOL) -> None:
    """Remove an empty pool."""
    session.delete("/pools", poolid=pool)


@verb(app)
def enter(session: Session, pool: str = POOL, vms: str | None = VMS, storages: str | None = STORAGES) -> None:
    """Put guests and storages into a pool.

    Example:  orrery pool enter lab --vms 100,101
    """
    session.put("/pools", poolid=pool, vms=vms, storage=storages)


@verb(app)
def leave(session: Session, pool: str = POOL, vms: str | None = VMS, storages: str | None = STORAGES) -> None:
    """Take guests and storages out of a pool."""
    session.put("/pools", poolid=pool, vms=vms, storage=storages, delete=True)
