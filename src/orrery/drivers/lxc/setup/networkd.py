# SPDX-License-Identifier: AGPL-3.0-or-later
"""Cards of systemd-networkd (systemd.network(5)): a file of our own for each, which an administrator's may precede."""

from typing import Final

from orrery.drivers.lxc.setup.blocks import drop_owned, write_text
from orrery.drivers.lxc.setup.plan import Card, Setup
from orrery.drivers.lxc.tree import Tree

_FOLDER: Final = "/etc/systemd/network"
_PREFIX: Final = "50-orrery-"
_HEAD: Final = "# Written by Orrery; changes are lost. A file of a smaller number is heeded in its place."
_PROGRAMS: Final = ("/usr/lib/systemd/systemd-networkd", "/lib/systemd/systemd-networkd")


def present(tree: Tree) -> bool:
    """Whether the tree has it."""
    return any(map(tree.is_file, _PROGRAMS))


def write(tree: Tree, setup: Setup) -> None:
    """Write the files, remove those of cards that are gone."""
    cards = [card for card in setup.cards() if card.managed]
    wanted = {f"{_PREFIX}{card.name}.network": "\n".join([_HEAD, *_text(card), ""]) for card in cards}
    drop_owned(tree, _FOLDER, _PREFIX, set(wanted))
    for name, text in wanted.items():
        write_text(tree, f"{_FOLDER}/{name}", text, 0o644)


def _text(card: Card) -> list[str]:
    dhcp = {(True, True): "yes", (True, False): "ipv4", (False, True): "ipv6"}
    learns = card.v6 in ("auto", "dhcp")
    lines = ["[Match]", f"Name={card.name}", "", "[Network]"]
    lines.append(f"DHCP={dhcp.get((card.v4 == 'dhcp', card.v6 == 'dhcp'), 'no')}")
    lines.append(f"IPv6AcceptRA={'yes' if learns else 'no'}")
    lines += [f"Address={way.cidr}" for way in card.statics]
    for way in card.statics:
        if way.gateway is not None:
            lines += ["", "[Route]", f"Gateway={way.gateway}", *(["GatewayOnLink=yes"] if way.on_link else [])]
    if card.v6 == "dhcp":
        lines += ["", "[DHCPv6]", "WithoutRA=solicit"]
    return lines
