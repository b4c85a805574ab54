# SPDX-License-Identifier: AGPL-3.0-or-later
"""Cards in /etc/sysconfig/network: openSUSE with wicked (its ifcfg(5), ifroute(5)). The last assignment counts."""

from typing import Final

from orrery.drivers.lxc.setup.blocks import put_block
from orrery.drivers.lxc.setup.plan import Card, Setup
from orrery.drivers.lxc.tree import Tree

_FOLDER: Final = "/etc/sysconfig/network"


def present(tree: Tree) -> bool:
    """Whether the tree has it."""
    return tree.is_dir(_FOLDER) and any(tree.exists(f"{folder}/wicked") for folder in ("/usr/sbin", "/sbin"))


def write(tree: Tree, setup: Setup) -> None:
    """Write the files. Those of cards that are gone or manual lose our block."""
    cards = {card.name: card for card in setup.cards() if card.managed}
    present_ = {each.removeprefix("ifcfg-") for each in tree.list(_FOLDER) if each.startswith("ifcfg-")}
    for name in sorted((present_ - {"lo"}) | set(cards)):
        card = cards.get(name)
        put_block(tree, f"{_FOLDER}/ifcfg-{name}", _text(card) if card else [])
        put_block(tree, f"{_FOLDER}/ifroute-{name}", _routes(card) if card else [])


def _text(card: Card) -> list[str]:
    return [
        "STARTMODE='auto'",
        f"BOOTPROTO='{_protocol(card)}'",
        *(f"IPADDR_{number}='{way.cidr}'" for number, way in enumerate(card.statics)),
    ]


def _protocol(card: Card) -> str:
    """One word for both versions; the kernel does SLAAC under any of them."""
    if card.v4 == "dhcp":
        return "dhcp" if card.v6 == "dhcp" else "dhcp4"
    if card.v6 == "dhcp":
        return "dhcp6"
    return "auto6" if card.v6 == "auto" and not card.statics else "static"


def _routes(card: Card) -> list[str]:
    """Lines of destination, gateway, mask, device; `-` for what a column does not say."""
    lines: list[str] = []
    for way in card.statics:
        if way.on_link:
            lines.append(f"{way.gateway}/{way.interface.ip.max_prefixlen} - - {card.name}")
        if way.gateway is not None:
            lines.append(f"default {way.gateway} - {card.name}")
    return lines
