# SPDX-License-Identifier: AGPL-3.0-or-later
"""A login on the console and on each terminal: systemd's units, or lines of inittab(5)."""

import re
from typing import Final

from orrery.drivers.lxc.setup.blocks import OFF, joined, read_text, split, write_text
from orrery.drivers.lxc.setup.plan import Setup
from orrery.drivers.lxc.tree import Tree

_INITTAB: Final = "/etc/inittab"
_UNITS: Final = "/etc/systemd/system"
_WANTS: Final = f"{_UNITS}/getty.target.wants"
_DROP_IN: Final = f"{_UNITS}/getty@.service.d/orrery.conf"
_TERMINAL: Final = re.compile(r"\b(?:tty([0-9]+)|console)\b")
_TEMPLATES: Final = ("/usr/lib/systemd/system/getty@.service", "/lib/systemd/system/getty@.service")
_MOST: Final = 6


def has_systemd(tree: Tree) -> bool:
    """Whether systemd is what starts the container."""
    return any(tree.is_file(f"{folder}/systemd/systemd") for folder in ("/usr/lib", "/lib"))


def logins(tree: Tree, setup: Setup) -> None:
    """Write what this tree's init reads."""
    if has_systemd(tree):
        _systemd(tree, setup)
    else:
        _inittab(tree, setup)


def _systemd(tree: Tree, setup: Setup) -> None:
    """The console has a unit in every container already; terminals want a look at tty0 first, which we have not."""
    template = next((path for path in _TEMPLATES if tree.is_file(path)), None)
    if template is None:
        return
    # An empty condition takes away all that were set before (systemd.unit(5)).
    write_text(tree, _DROP_IN, "# Written by Orrery; changes are lost.\n[Unit]\nConditionPathExists=\n", 0o644)
    for number in range(1, _MOST + 1):
        link = f"{_WANTS}/getty@tty{number}.service"
        if number > setup.ttys:
            if tree.readlink(link) is not None:
                tree.remove(link)
        elif tree.readlink(link) is None:
            tree.mkdir(_WANTS)
            tree.symlink(link, template)


def _inittab(tree: Tree, setup: Setup) -> None:
    """Lines of terminals that there are not are switched off; the console gets one where nobody wrote it."""
    text = read_text(tree, _INITTAB)
    if text is None:
        return
    wanted = {f"tty{number}" for number in range(1, setup.ttys + 1)} | ({"console"} if setup.console else set())
    before, behind = (_switched(lines, wanted) for lines in split(text))
    served = {name for line in before + behind if (name := _served(line)) is not None}
    busybox = any(re.match(r"(tty\d+|console)?::", line) for line in before + behind)  # its lines may have no label
    missing = sorted(wanted - served)
    program = next((path for path in ("/sbin/agetty", "/sbin/getty") if tree.exists(path)), "/sbin/getty")
    body = [_line(name, program, busybox=busybox) for name in missing]
    write_text(tree, _INITTAB, joined(before, body, behind))


def _switched(lines: list[str], wanted: set[str]) -> list[str]:
    """Take our switches off, then put them before terminals that are not wanted."""
    found = []
    for line in (line.removeprefix(OFF) for line in lines):
        name = _served(line)
        found.append(f"{OFF}{line}" if name is not None and name not in wanted else line)
    return found


def _served(line: str) -> str | None:
    """The terminal that a line keeps a login on."""
    fields = line.split(":", 3)
    if line.lstrip().startswith("#") or len(fields) < 4 or fields[2] not in ("respawn", "askfirst"):
        return None
    match = _TERMINAL.search(fields[3]) or _TERMINAL.search(fields[0])
    return match[0] if match else None


def _line(name: str, program: str, *, busybox: bool) -> str:
    if busybox:  # its own words: the terminal stands in the first field too
        return f"{name}::respawn:{program} 38400 {name}"
    label = "co" if name == "console" else name.removeprefix("tty")
    return f"{label}:2345:respawn:{program} 38400 {name}"
