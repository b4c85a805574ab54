# SPDX-License-Identifier: AGPL-3.0-or-later
"""`orrery audit`: who did what, from where, and with what result."""

import typer

from orrery.cli.verbs import Columns, Session, moment, verb

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@verb(app, "list")
def list_(session: Session, limit: int = typer.Option(50, help="How many at most.")) -> None:
    """List changes and refused attempts, newest first.

    Example:  orrery audit list --limit 20
    """
    columns: Columns = {"WHEN": moment("time"), "WHO": "user", "FROM": "origin", "WHAT": "msg"}
    session.table(session.get("/cluster/log", max=limit), columns)
