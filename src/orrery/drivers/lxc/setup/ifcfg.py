# SPDX-License-Identifier: AGPL-3.0-or-later
"""Cards in /etc/sysconfig/network-scripts: the Fedora family before NetworkManager's own files.

The files are read as shell assignments, the last of which counts: our block stands at the end, and settings that it
does not name stay as they are (nm-settings-ifcfg-rh(5)).
"""

from typing import Final

from orrery.drivers.lxc.setup.blocks import put_block
from orrery.drivers.lxc.setup.plan import Card, Setup, Static
from orrery.drivers.lxc.tree import Tree

_FOLDER: Final = "/etc/sysconfig/network-scripts"


def present(tree: Tree) -> bool:
    """Whether the scripts that read these files are there."""
    return tree.exists(f"{_FOLDER}/ifup-eth")


def write(tree: Tree, setup: Setup) -> None:
    """Write the files. Those of cards that are gone or manual lose our block."""
    put_block(tree, "/etc/sysconfig/network", ["NETWORKING=yes"])
    cards = {card.name: card for card in setup.cards() if card.managed}
    names = set(tree.list(_FOLDER))
    for name in sorted({each.removeprefix("ifcfg-") for each in names if each.startswith("ifcfg-")} | set(cards)):
        card = cards.get(name)
        put_block(tree, f"{_FOLDER}/ifcfg-{name}", _text(card) if card else [])
        put_block(tree, f"{_FOLDER}/route-{name}", _routes(name, card.v4 if card else None))
        put_block(tree, f"{_FOLDER}/route6-{name}", _routes(name, card.v6 if card else None))


def _text(card: Card) -> list[str]:
    lines = [f"DEVICE={card.name}", "TYPE=Ethernet", "ONBOOT=yes"]
    lines.append(f"BOOTPROTO={'dhcp' if card.v4 == 'dhcp' else 'none'}")
    if isinstance(card.v4, Static):
        lines += [f"IPADDR={card.v4.address}", f"NETMASK={card.v4.interface.network.netmask}"]
        if card.v4.gateway is not None and not card.v4.on_link:
            lines.append(f"GATEWAY={card.v4.gateway}")
    if card.v6 is None:
        return lines
    lines += ["IPV6INIT=yes", f"IPV6_AUTOCONF={'yes' if card.v6 == 'auto' else 'no'}"]
    if card.v6 == "dhcp":
        lines.append("DHCPV6C=yes")
    if isinstance(card.v6, Static):
        lines.append(f"IPV6ADDR={card.v6.cidr}")
        if card.v6.gateway is not None and not card.v6.on_link:
            lines.append(f"IPV6_DEFAULTGW={card.v6.gateway}%{card.name}")
    return lines


def _routes(name: str, way: object) -> list[str]:
    if not isinstance(way, Static) or not way.on_link:
        return []
    return [f"{way.gateway}/{way.interface.ip.max_prefixlen} dev {name}", f"default via {way.gateway} dev {name}"]
