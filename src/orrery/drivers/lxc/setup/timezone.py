# SPDX-License-Identifier: AGPL-3.0-or-later
"""The time zone: a link to the tree's own zone file, or a copy of the host's where the tree has none."""

import re
from pathlib import Path
from typing import Final

from orrery.drivers.lxc.setup.blocks import write_text
from orrery.drivers.lxc.tree import Tree
from orrery.errors import Failure

_ZONES: Final = "/usr/share/zoneinfo"
_ZONE: Final = re.compile(r"[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*")
_LARGEST: Final = 64 << 10
_LOCALTIME: Final = "/etc/localtime"


def timezone(tree: Tree, wanted: str) -> None:
    """Set the zone. Raises Failure when neither tree nor host knows it."""
    name = of_host() if wanted == "host" else wanted
    if name is None:
        raise Failure("the host's own time zone has no name (its /etc/localtime is no link); give a name")
    if not _ZONE.fullmatch(name):
        raise Failure(f"'{name}' is no name of a time zone")
    if tree.is_file(f"{_ZONES}/{name}"):
        tree.symlink(_LOCALTIME, f"{_ZONES}/{name}")
    else:
        tree.write(_LOCALTIME, _of_host(name), mode=0o644, follow=False)
    if tree.is_file("/etc/timezone"):
        write_text(tree, "/etc/timezone", f"{name}\n")


def _of_host(name: str) -> bytes:
    try:
        with Path(_ZONES, name).open("rb") as handle:
            data = handle.read(_LARGEST)
    except OSError as error:
        raise Failure(f"there is no time zone '{name}', neither in the container nor on the host") from error
    if not data.startswith(b"TZif"):
        raise Failure(f"'{name}' is no time zone")
    return data


def of_host() -> str | None:
    """The name of the host's zone."""
    try:
        _, marked, name = str(Path(_LOCALTIME).resolve(strict=True)).partition("zoneinfo/")
    except OSError:
        return "UTC"  # without the file, times are UTC
    if marked:
        return name
    try:
        return Path("/etc/timezone").read_text("ascii", "replace").strip() or None
    except OSError:
        return None
