# SPDX-License-Identifier: AGPL-3.0-or-later
"""What all verbs of the command line share: which node to speak to, and how to print what it says.

A verb is a function whose first parameter is the `Session`; `@verb(app)` adds the options of the connection to it, so
that every verb takes them in the same words.
"""

import functools
import inspect
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import orjson
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from orrery.cli.client import Client, Target
from orrery.cli.helptext import shown, summary
from orrery.errors import Failure, Forbidden
from orrery.system.paths import Paths

PANEL = "Connection and output"
PIPE_WIDTH = 10_000
"""Columns of a table that nobody looks at directly."""

LAST_LINES = 4
"""So much of a failed task's log is shown before its error."""

Columns = Mapping[str, str | Callable[[Any], str]]
"""Headings, each with the key of what stands below it or a function that shows a row there."""

CONNECTION: dict[str, tuple[Any, Any]] = {
    "root": (
        Path | None,
        typer.Option(None, envvar="ORRERY_ROOT", help="Folder of the local node.", rich_help_panel=PANEL),
    ),
    "server": (
        str | None,
        typer.Option(None, envvar="ORRERY_SERVER", help="Another node: https://HOST:8006.", rich_help_panel=PANEL),
    ),
    "as_user": (str | None, typer.Option(None, "--as", help="User on that node.", rich_help_panel=PANEL)),
    "password_file": (Path | None, typer.Option(None, help="File with the user's password.", rich_help_panel=PANEL)),
    "token_file": (Path | None, typer.Option(None, help="File with USER!TOKEN=SECRET.", rich_help_panel=PANEL)),
    "ca_file": (Path | None, typer.Option(None, help="Certificate to trust.", rich_help_panel=PANEL)),
    "json": (bool, typer.Option(False, "--json", help="Print JSON.", rich_help_panel=PANEL)),
}


class Session:
    """One run of a verb: a connection that is made when it is needed, and the way of printing."""

    def __init__(self, target: Target, *, json: bool, root: Path | None = None) -> None:
        self._target = target
        self._root = root
        self.json = json
        # Into a file or a pipe every row is one line, however long.
        width = None if sys.stdout.isatty() else PIPE_WIDTH
        self.console = Console(highlight=False, soft_wrap=True, width=width)

    @functools.cached_property
    def client(self) -> Client:
        """The connection."""
        return Client(self._target)

    def here(self) -> Paths:
        """The node of this machine, for verbs that do not go through its API. Raises `Failure` for another node."""
        if self._target.server is not None:
            raise Failure("this works on the machine of the node itself only: log in there, without --server")
        if os.geteuid() != 0:
            raise Forbidden("only root may enter guests of this machine")
        return Paths.of(self._root)

    @functools.cached_property
    def node(self) -> str:
        """Path of the node that answers."""
        return f"/nodes/{self.client.node()}"

    def get(self, where: str, /, **parameters: Any) -> Any:
        """Data of a GET; underscores in names stand for hyphens."""
        return self.client.call("GET", where, _wire_names(parameters))

    def post(self, where: str, /, **parameters: Any) -> Any:
        """Data of a POST."""
        return self.client.call("POST", where, _wire_names(parameters))

    def put(self, where: str, /, **parameters: Any) -> Any:
        """Data of a PUT."""
        return self.client.call("PUT", where, _wire_names(parameters))

    def delete(self, where: str, /, **parameters: Any) -> Any:
        """Data of a DELETE."""
        return self.client.call("DELETE", where, _wire_names(parameters))

    def table(self, rows: Iterable[Mapping[str, Any]], columns: Columns) -> None:
        """Prints rows: as JSON, or as a table of the given columns (key to heading, or `heading: how to show`)."""
        found = list(rows)
        if self.json:
            self.dump(found)
            return
        table = Table(box=None, pad_edge=False, header_style="bold")
        for heading in columns:
            table.add_column(heading, overflow="fold")
        for row in found:
            table.add_row(*(_cell(row, how) for how in columns.values()))
        # An identifier that is broken into pieces could not be copied; the terminal breaks the line instead.
        wide = Console(highlight=False, soft_wrap=True, width=PIPE_WIDTH)
        (wide if "UPID" in columns else self.console).print(table)

    def facts(self, document: Mapping[str, Any]) -> None:
        """Prints one thing: as JSON, or a line per key."""
        if self.json:
            self.dump(document)
            return
        width = max((len(key) for key in document), default=0)
        for key in sorted(document):
            self.console.print(f"{key:<{width}}  {_text(document[key])}", markup=False)

    def dump(self, value: Any) -> None:
        """Prints JSON."""
        sys.stdout.write(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode() + "\n")

    def say(self, text: str) -> None:
        """Prints a line for people; nothing with --json, which is for programs."""
        if not self.json:
            self.console.print(text, markup=False)

    def follow(self, upid: str | None, *, wait: bool = True) -> None:
        """Waits for a task with a progress bar; prints its name instead when not told to wait. Raises `Failure`.

        Warnings of a task that did its work go to standard error: without them nobody would look into its log.
        """
        if upid is None:
            return
        if not wait:
            self.dump(upid) if self.json else self.say(upid)
            return
        status = self._watch(upid)
        if self.json:
            self.dump({"upid": upid, "status": status})
        elif status != "OK":
            self._print_warnings(upid)

    def upload(self, where: str, fields: Mapping[str, str], file: Path, name: str) -> None:
        """Sends a file with a progress bar, then waits for the task that takes it in. Raises `Failure`."""
        with self._bar() as bar:
            total = file.stat().st_size

            def watched(stream: BinaryIO) -> BinaryIO:
                return bar.wrap_file(stream, total=total, description="upload")

            upid = self.client.upload(where, fields, file, name, watched)
        self.follow(upid)

    def _bar(self) -> Progress:
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        hidden = self.json or not self.console.is_terminal
        return Progress(*columns, console=self.console, transient=True, disable=hidden)

    def _watch(self, upid: str) -> str:
        """Waits, with a bar on a terminal; the status with which the task ended."""
        last: dict[str, Any] = {}
        with self._bar() as bar:
            shown = bar.add_task(upid.split(":")[5], total=None)

            def watch(state: dict[str, Any]) -> None:
                last.update(state)
                found = state.get("progress")
                if found:
                    bar.update(shown, description=found["step"] or None, completed=found["done"], total=found["total"])

            try:
                self.client.wait(upid, watch)
            except Failure:
                bar.stop()
                if not self.json:
                    self._print_end(upid)
                raise
        return str(last["exitstatus"])

    def _print_end(self, upid: str) -> None:
        """Prints the last lines of a failed task's log but the very last, which is the error itself."""
        lines = [line["t"] for line in self._log(upid) if line["n"]]
        for line in lines[:-1][-LAST_LINES:]:
            self.console.print(line, markup=False)

    def _print_warnings(self, upid: str) -> None:
        """Prints what a task warned of, to standard error."""
        errors = Console(stderr=True, highlight=False, soft_wrap=True)
        for line in self._log(upid):
            if line["t"].startswith("WARN: "):
                errors.print(line["t"], markup=False, style="yellow")

    def _log(self, upid: str, start: int = 0) -> list[dict[str, Any]]:
        """Lines of a task's log from `start` on."""
        where = f"/nodes/{upid.split(':')[1]}/tasks/{upid}/log"
        return list(self.client.call("GET", where, {"start": start, "limit": 0}))

    def print_log(self, upid: str, *, start: int = 0) -> int:
        """Prints lines of a task's log from `start` on; the number of lines that there are."""
        lines = self._log(upid, start)
        for line in lines:
            if line["n"]:
                self.console.print(line["t"], markup=False)
        return start + len(lines)


def verb(
    app: typer.Typer, name: str | None = None, *, dashed: bool = False
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Makes a function a verb of a noun: its first parameter, the session, is made from the connection's options.

    With `dashed` arguments may begin with a hyphen, so that the verb itself can say what is wrong with `-1G`.
    """

    def declare(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def run(**given: Any) -> None:
            chosen = {option: given.pop(option) for option in CONNECTION}
            target = Target(
                Paths.of(chosen["root"]).local_sock,
                chosen["server"],
                chosen["as_user"],
                chosen["password_file"],
                chosen["token_file"],
                chosen["ca_file"],
            )
            function(Session(target, json=chosen["json"], root=chosen["root"]), **given)

        own = list(inspect.signature(function).parameters.values())[1:]
        shared = [
            inspect.Parameter(option, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
            for option, (kind, default) in CONNECTION.items()
        ]
        run.__signature__ = inspect.Signature([p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own] + shared)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in [*own, *shared]}
        del run.__wrapped__  # typer would look through it to the function itself
        app.command(
            name,
            help=shown(function.__doc__),
            short_help=summary(function.__doc__),
            context_settings={"ignore_unknown_options": dashed},
        )(run)
        return function

    return declare


def _wire_names(parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {name.rstrip("_").replace("_", "-"): value for name, value in parameters.items()}


def _cell(row: Mapping[str, Any], how: str | Callable[[Any], str]) -> str:
    return _text(row.get(how)) if isinstance(how, str) else how(row)


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    if isinstance(value, dict):
        return orjson.dumps(value).decode()
    return str(value)


def size(key: str) -> Callable[[Mapping[str, Any]], str]:
    """Shows bytes in the largest unit that keeps the number above one."""

    def show(row: Mapping[str, Any]) -> str:
        amount = row.get(key)
        if amount is None:
            return ""
        number = float(amount)
        for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
            if number < 1024 or unit == "TiB":
                return f"{number:.0f} {unit}" if unit == "B" or number >= 100 else f"{number:.1f} {unit}"
            number /= 1024
        return ""

    return show


def listed(key: str) -> Callable[[Mapping[str, Any]], str]:
    """Shows a list in one text, `a,b`, so that lines can break between its items."""
    return lambda row: ", ".join(str(row.get(key) or "").replace(",", " ").split())


def percent(key: str) -> Callable[[Mapping[str, Any]], str]:
    """Shows a fraction as percent."""
    return lambda row: "" if row.get(key) is None else f"{float(row[key]) * 100:.1f} %"


def moment(key: str) -> Callable[[Mapping[str, Any]], str]:
    """Shows seconds since 1970 as local time."""
    return lambda row: "" if not row.get(key) else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row[key]))


def duration(key: str) -> Callable[[Mapping[str, Any]], str]:
    """Shows seconds as days and hours, minutes and seconds."""

    def show(row: Mapping[str, Any]) -> str:
        seconds = int(row.get(key) or 0)
        if not seconds:
            return ""
        days, rest = divmod(seconds, 86400)
        clock = f"{rest // 3600:02d}:{rest % 3600 // 60:02d}:{rest % 60:02d}"
        return f"{days} d {clock}" if days else clock

    return show


def pairs(words: Iterable[str]) -> dict[str, str]:
    """`key=value` words as parameters. Raises `Failure` for a word without `=`."""
    found = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise Failure(f"'{word}' is not KEY=VALUE")
        found[key] = value
    return found
