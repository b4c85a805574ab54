# SPDX-License-Identifier: AGPL-3.0-or-later
"""The container's name: hostname(5), hosts(5), and what single distributions keep beside."""

from orrery.drivers.lxc.setup.blocks import put_block, read_text, split, write_text
from orrery.drivers.lxc.setup.plan import Setup, Static
from orrery.drivers.lxc.tree import Tree


def hostname(tree: Tree, setup: Setup) -> None:
    """The file that carries the name alone."""
    write_text(tree, "/etc/hostname", f"{setup.short_name}\n")


def hosts(tree: Tree, setup: Setup) -> None:
    """A block with localhost, where nobody else says it, and our own name at our own addresses."""
    before, behind = split(read_text(tree, "/etc/hosts") or "")
    known = {fields[0] for fields in (line.split() for line in before + behind) if "localhost" in fields[1:]}
    body = [
        *(["127.0.0.1 localhost"] if "127.0.0.1" not in known else []),
        *(["::1 localhost ip6-localhost ip6-loopback"] if "::1" not in known else []),
    ]
    names = setup.hostname if setup.hostname == setup.short_name else f"{setup.hostname} {setup.short_name}"
    statics = [way for card in setup.cards() for way in card.statics]
    body += [f"{way.address} {names}" for way in _one_of_each(statics)] or [f"127.0.1.1 {names}"]
    put_block(tree, "/etc/hosts", body)


def _one_of_each(statics: list[Static]) -> list[Static]:
    """The first address of each version: a name with one address per card would be answered at random."""
    first: dict[int, Static] = {}
    for way in statics:
        first.setdefault(way.interface.version, way)
    return list(first.values())
