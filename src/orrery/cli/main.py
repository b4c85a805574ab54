# SPDX-License-Identifier: AGPL-3.0-or-later
"""The program `orrery`: one noun per file. `init`, `serve` and `down` are the daemon's, the others clients of the API.

Only the module of the noun that is asked for is imported, so that the daemon and scripts start quickly.
"""

import importlib
import logging
import os
import sys
from collections.abc import Mapping, Sequence

import structlog
import typer
from rich.console import Console

from orrery import __version__
from orrery.cli.helptext import shown
from orrery.errors import Failure, OrreryError

NOUNS = {
    "init": "Prepare a folder for a new node.",
    "serve": "Run the node.",
    "down": "Stop the node, its guests and its network.",
    "vm": "Virtual machines.",
    "ct": "Containers.",
    "launch": "Make a guest from an image, and start it.",
    "image": "What guests can be made from.",
    "guests": "Many guests at once: start, stop, suspend.",
    "storage": "Storages and the volumes in them.",
    "task": "Tasks: list, follow, stop.",
    "user": "Users, groups, roles, tokens, and what they may.",
    "pool": "Pools of guests and storages.",
    "audit": "Who did what.",
    "api": "Any method of the REST API, and its description.",
}

COMPLETION = "_ORRERY_COMPLETE"
"""Set by the shell's completion function, which then runs this program for the words that may follow."""

EXAMPLES = """Virtual machines on a server of your own.

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
    """The program, with these nouns in full and only the names of the others.

    A noun's module has an `app` of verbs, or a `command` that is the noun itself.
    """
    app = typer.Typer(
        no_args_is_help=True, rich_markup_mode=None, callback=root, help=EXAMPLES, pretty_exceptions_enable=False
    )
    for noun in NOUNS:
        if noun not in wanted:
            app.command(noun, short_help=NOUNS[noun])(_named_only)
            continue
        module = importlib.import_module(f"orrery.cli.{noun}")
        if hasattr(module, "command"):
            app.command(noun, short_help=NOUNS[noun], help=shown(module.command.__doc__))(module.command)
        else:
            app.add_typer(module.app, name=noun, help=NOUNS[noun])
    return app


def _named_only() -> None:
    """Stands in lists for a noun that was not asked for."""
    raise Failure("options come after the noun: orrery NOUN VERB --option")


def asked(arguments: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """The noun among the arguments, or among those that the shell wants to have completed; at most one."""
    if COMPLETION in environment:
        line = environment.get("COMP_WORDS") or environment.get("_TYPER_COMPLETE_ARGS") or ""
        arguments = line.split()[1:]
    return [word for word in arguments if not word.startswith("-")][:1]


def main() -> None:
    """Entry point: runs a command and exits with 0, or with the exit code of the error's class."""
    # What a verb does underneath is no concern of whoever typed it; the daemon sets up its own log.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    try:
        application(asked(sys.argv[1:], os.environ))()
    except OrreryError as error:
        report(error)
        sys.exit(error.exit_code)
    except OSError as error:  # such as a state folder on a disk that is broken: a traceback would tell no more
        report(Failure(str(error)))
        sys.exit(Failure.exit_code)


def report(error: OrreryError) -> None:
    """Prints an error for people: the message, then each parameter with its fault."""
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    console.print(f"orrery: {error.message.strip()}", style="red")
    for name, text in sorted(error.errors.items()):
        console.print(f"  {name}: {text}")
