# SPDX-License-Identifier: AGPL-3.0-or-later
"""Cards in /etc/conf.d/net: Gentoo's netifrc. Shell assignments, the last of which counts."""

import re
from typing import Final

from orrery.drivers.lxc.setup.blocks import put_block
from orrery.drivers.lxc.setup.plan import Card, Setup
from orrery.drivers.lxc.tree import Tree

_FILE: Final = "/etc/conf.d/net"
_NOT_IN_NAMES: Final = re.compile(r"[^A-Za-z0-9_]")


def present(tree: Tree) -> bool:
    """Whether the tree has it."""
    return tree.exists("/etc/init.d/net.lo")


def write(tree: Tree, setup: Setup) -> None:
    """Write the file, and give new cards their service."""
    cards = [card for card in setup.cards() if card.managed]
    put_block(tree, _FILE, [line for card in cards for line in _text(card)])
    for card in cards:
        service = f"/etc/init.d/net.{card.name}"
        if not tree.exists(service):
            # Without the service the card was never meant to start, so it is added to the runlevel once, here.
            tree.symlink(service, "net.lo")
            tree.mkdir("/etc/runlevels/default")
            tree.symlink(f"/etc/runlevels/default/net.{card.name}", service)


def _text(card: Card) -> list[str]:
    variable = _NOT_IN_NAMES.sub("_", card.name)
    ways = [way.cidr for way in card.statics]
    ways += [*(["dhcp"] if card.v4 == "dhcp" else []), *(["dhcpv6"] if card.v6 == "dhcp" else [])]
    routes: list[str] = []
    for way in card.statics:
        if way.on_link:
            routes.append(f"{way.gateway}/{way.interface.ip.max_prefixlen} dev {card.name}")
        if way.gateway is not None:
            routes.append(f"default via {way.gateway} dev {card.name}")
    # With no address of ours the card is only brought up: SLAAC is the kernel's.
    lines = [f'config_{variable}="{_lines(ways or ["null"])}"']
    return [*lines, f'routes_{variable}="{_lines(routes)}"'] if routes else lines


def _lines(values: list[str]) -> str:
    return "\n".join(values)
