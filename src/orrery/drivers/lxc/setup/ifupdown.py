# SPDX-License-Identifier: AGPL-3.0-or-later
"""Cards in /etc/network/interfaces (interfaces(5)): Debian, Devuan, Alpine. Written so that BusyBox reads it too.

What the file says about a card and a version of IP that the configuration speaks of is switched off, line by line, and
comes back when the configuration leaves the card to the inside (`manual`). All else stays.
"""

from dataclasses import dataclass, field
from typing import Final

from orrery.drivers.lxc.setup.blocks import OFF, joined, read_text, split, write_text
from orrery.drivers.lxc.setup.plan import Card, Setup, Static
from orrery.drivers.lxc.tree import Tree

FILE: Final = "/etc/network/interfaces"
_PROGRAMS: Final = ("/sbin/ifup", "/usr/sbin/ifup")
_STANZAS: Final = ("iface", "auto", "mapping", "source", "source-directory", "no-auto-down", "no-scripts", "template")


@dataclass
class _Others:
    """What stands outside of our block: its lines, and what they bring up."""

    lines: list[str] = field(default_factory=list)
    auto: set[str] = field(default_factory=set)
    loopback: bool = False


def write(tree: Tree, setup: Setup) -> None:
    """Write the file."""
    cards = [card for card in setup.cards() if card.managed]
    text = read_text(tree, FILE) or ""
    before, behind = split(text)
    claimed = {(card.name, family) for card in cards for family, way in _ways(card) if way is not None}
    first, second = _switch(before, claimed), _switch(behind, claimed)
    simple = any("busybox" in (tree.readlink(path) or "") for path in _PROGRAMS)
    auto, loopback = first.auto | second.auto, first.loopback or second.loopback
    body: list[str] = []
    if not loopback:
        body += [*([] if "lo" in auto else ["auto lo"]), "iface lo inet loopback", ""]
    for card in cards:
        body += [*([] if card.name in auto else [f"auto {card.name}"]), *_stanzas(card, simple=simple), ""]
    write_text(tree, FILE, joined(first.lines, body[:-1], second.lines))


def _ways(card: Card) -> tuple[tuple[str, object], tuple[str, object]]:
    return ("inet", card.v4), ("inet6", card.v6)


def _switch(lines: list[str], claimed: set[tuple[str, str]]) -> _Others:
    """Take our switches off, then put them before what is claimed now."""
    found = _Others()
    off = False
    for line in (line.removeprefix(OFF) for line in lines):
        words = line.split()
        if words and (words[0] in _STANZAS or words[0].startswith("allow-")):
            off = words[0] == "iface" and len(words) > 2 and (words[1], words[2]) in claimed
            if words[0] in ("auto", "allow-auto"):
                found.auto.update(words[1:])
            if words[:2] == ["iface", "lo"]:
                found.loopback = True
        comment = not words or words[0].startswith("#")
        found.lines.append(f"{OFF}{line}" if off and not comment else line)
    return found


def _stanzas(card: Card, *, simple: bool) -> list[str]:
    """`simple`: for BusyBox's ifup, to which a method that it does not know is a reason to bring up no card at all."""
    lines: list[str] = []
    if isinstance(card.v4, Static):
        lines += [f"iface {card.name} inet static", f"\taddress {card.v4.address}"]
        lines += [f"\tnetmask {card.v4.interface.network.netmask}", *_gateway(card.name, card.v4, "ip")]
    elif card.v4 == "dhcp":
        lines.append(f"iface {card.name} inet dhcp")
    if isinstance(card.v6, Static):
        lines += [f"iface {card.name} inet6 static", f"\taddress {card.v6.address}"]
        lines += [f"\tnetmask {card.v6.interface.network.prefixlen}", *_gateway(card.name, card.v6, "ip -6")]
    elif card.v6 is not None and simple:
        # The kernel does SLAAC by itself once the card is up.
        lines += [f"iface {card.name} inet6 manual", f"\tup ip link set dev {card.name} up"]
        lines += [f"\tup udhcpc6 -b -i {card.name}"] if card.v6 == "dhcp" else []
    elif card.v6 is not None:
        lines.append(f"iface {card.name} inet6 {card.v6}")
    return lines


def _gateway(name: str, way: Static, ip: str) -> list[str]:
    if way.gateway is None:
        return []
    if not way.on_link:
        return [f"\tgateway {way.gateway}"]
    length = 32 if way.interface.version == 4 else 128
    return [
        f"\tup {ip} route replace {way.gateway}/{length} dev {name}",
        f"\tup {ip} route replace default via {way.gateway} dev {name}",
    ]
