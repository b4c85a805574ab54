# SPDX-License-Identifier: AGPL-3.0-or-later
"""`orrery api`: any method of the REST API by its path, and the API's own description."""

from typing import Any

import orjson
import typer

from orrery.api.openapi import describe
from orrery.api.routes import load_routes
from orrery.cli.verbs import Session, pairs, verb

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

PATH = typer.Argument(..., help="Path of the method, such as /nodes/alpha/qemu/100/config.")
PARAMETERS = typer.Argument(None, metavar="[KEY=VALUE]...", help="Its parameters.")
WAIT = typer.Option(False, "--wait", help="Wait for the task that it starts.")


def _call(session: Session, word: str, path: str, parameters: list[str] | None, *, wait: bool = False) -> None:
    found: Any = session.client.call(word, path, pairs(parameters or ()))
    if wait and isinstance(found, str) and found.startswith("UPID:"):
        session.follow(found)
    elif found is not None:
        session.dump(found)


@verb(app)
def get(session: Session, path: str = PATH, parameters: list[str] = PARAMETERS) -> None:
    """Read (GET).

    Example:  orrery api get /cluster/resources type=vm
    """
    _call(session, "GET", path, parameters)


@verb(app)
def create(session: Session, path: str = PATH, parameters: list[str] = PARAMETERS, wait: bool = WAIT) -> None:
    """Create, or do (POST).

    Example:  orrery api create /nodes/alpha/qemu/100/status/start --wait
    """
    _call(session, "POST", path, parameters, wait=wait)


@verb(app, "set")
def set_(session: Session, path: str = PATH, parameters: list[str] = PARAMETERS, wait: bool = WAIT) -> None:
    """Change (PUT)."""
    _call(session, "PUT", path, parameters, wait=wait)


@verb(app)
def delete(session: Session, path: str = PATH, parameters: list[str] = PARAMETERS, wait: bool = WAIT) -> None:
    """Delete (DELETE)."""
    _call(session, "DELETE", path, parameters, wait=wait)


@app.command()
def schema() -> None:
    """Print the description of the whole API (OpenAPI 3.1). Needs no running node."""
    typer.echo(orjson.dumps(describe(load_routes()), option=orjson.OPT_INDENT_2).decode())
