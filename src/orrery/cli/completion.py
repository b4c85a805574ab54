# SPDX-License-Identifier: AGPL-3.0-or-later
"""What the shell offers when somebody presses Tab: numbers and names that exist on the node of this machine.

Asked as local root only. Whoever may not ask, or whose node does not run, is offered nothing: a completion never fails.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import typer

from orrery.errors import OrreryError
from orrery.system.paths import Paths

Offers = list[tuple[str, str]]
Completer = Callable[[typer.Context, str], Offers]
"""From what has been typed to what may stand there, each with a remark for shells that show one."""


def _from(path: str, key: str, remark: str, **parameters: str) -> Completer:
    """Completes with the `key` of the rows that the API lists at `path`."""

    def complete(ctx: typer.Context, incomplete: str) -> Offers:
        rows = _ask(ctx, path, parameters)
        found = ((str(row.get(key, "")), str(row.get(remark) or "")) for row in rows)
        return sorted({each for each in found if each[0].startswith(incomplete)})

    return complete


def _ask(ctx: typer.Context, path: str, parameters: Mapping[str, str]) -> Iterable[Mapping[str, Any]]:
    from orrery.cli.client import Client, Target  # the HTTP client takes time that completing an option need not

    root = ctx.params.get("root")
    socket = Paths.of(Path(root) if root else None).local_sock
    try:
        found = Client(Target(socket)).call("GET", path, parameters)
    except (OrreryError, OSError):
        return ()
    return found if isinstance(found, list) else ()


vmids = _from("/cluster/resources", "vmid", "name", type="vm")
storages = _from("/cluster/resources", "storage", "content", type="storage")
pools = _from("/pools", "poolid", "comment")
users = _from("/access/users", "userid", "comment")
groups = _from("/access/groups", "groupid", "comment")
roles = _from("/access/roles", "roleid", "comment")


def words(*offered: str) -> Completer:
    """Completes with fixed words."""

    def complete(ctx: typer.Context, incomplete: str) -> Offers:
        return [(word, "") for word in offered if word.startswith(incomplete)]

    return complete
