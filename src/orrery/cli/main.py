# SPDX-License-Identifier: AGPL-3.0-or-later
"""The program `orrery`: one noun per file. `init`, `serve` and `down` are the daemon's, the others clients of the API.

Only the module of the noun that is asked for is imported, so that the daemon and scripts start quickly.
"""

import importlib
import logging
import sys
from collections.abc import Sequence

import structlog
import typer
from rich.console import Console

from orrery import __version__
from orrery.errors import OrreryError

NOUNS = {
    "init": "Prepare a folder for a new node.",
    "serve": "Run the node.",
    "down": "Stop the node, its guests and its network.",
    "vm": "Virtual machines.",
    "storage": "Storages and the volumes in them.",
    "task": "Tasks: list, follow, stop.",
    "user": "Users, groups, roles, tokens, and what they may.",
    "pool": "Pools of guests and storages.",
    "audit": "Who did what.",
    "api": "Any method of the REST API, and its description.",
}

EXAMPLES = """Virtual machines and containers on one server or many, as one system.

Examples:

  orrery vm list

  orrery vm start 100

  orrery task follow UPID

  orrery api get /version
"""


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"orrery {__version__}")
        raise typer.Exit


def root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    """The options before the noun."""


def application(wanted: Sequence[str]) -> typer.Typer:
    """The program with these nouns. A module has an `app` of verbs, or a `command` that is the noun itself."""
    app = typer.Typer(
        no_args_is_help=True, rich_markup_mode=None, callback=root, help=EXAMPLES, pretty_exceptions_enable=False
    )
    for noun in wanted:
        module = importlib.import_module(f"orrery.cli.{noun}")
        if hasattr(module, "command"):
            app.command(noun, short_help=NOUNS[noun])(module.command)
        else:
            app.add_typer(module.app, name=noun, help=NOUNS[noun])
    return app


def main() -> None:
    """Entry point: runs a command and exits with 0, or with the exit code of the error's class."""
    # What a verb does underneath is no concern of whoever typed it; the daemon sets up its own log.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    nouns = [word for word in sys.argv[1:2] if word in NOUNS]
    try:
        application(nouns or list(NOUNS))()
    except OrreryError as error:
        report(error)
        sys.exit(error.exit_code)


def report(error: OrreryError) -> None:
    """Prints an error for people: the message, then each parameter with its fault."""
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    console.print(f"orrery: {error.message.strip()}", style="red")
    for name, text in sorted(error.errors.items()):
        console.print(f"  {name}: {text}")
