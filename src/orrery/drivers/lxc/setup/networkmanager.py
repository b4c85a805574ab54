# SPDX-License-Identifier: AGPL-3.0-or-later
"""Cards of NetworkManager (nm-settings-keyfile(5)): a connection of our own for each."""

import uuid
from typing import Final

from orrery.drivers.lxc.setup.blocks import drop_owned, write_text
from orrery.drivers.lxc.setup.plan import Card, Setup, Static, Way
from orrery.drivers.lxc.tree import Tree

_FOLDER: Final = "/etc/NetworkManager/system-connections"
_PREFIX: Final = "orrery-"
_HEAD: Final = "# Written by Orrery; changes are lost."
_NAMESPACE: Final = uuid.UUID("6f727265-7279-4c58-8000-636172647321")


def present(tree: Tree) -> bool:
    """Whether the tree has it."""
    return tree.exists("/usr/sbin/NetworkManager") or tree.exists("/usr/bin/NetworkManager")


def write(tree: Tree, setup: Setup) -> None:
    """Write the files, remove those of cards that are gone."""
    cards = [card for card in setup.cards() if card.managed]
    wanted = {f"{_PREFIX}{card.name}.nmconnection": "\n".join([_HEAD, *_text(card), ""]) for card in cards}
    drop_owned(tree, _FOLDER, _PREFIX, set(wanted))
    for name, text in wanted.items():
        write_text(tree, f"{_FOLDER}/{name}", text, 0o600)


def _text(card: Card) -> list[str]:
    return [
        "[connection]",
        f"id={_PREFIX}{card.name}",
        f"uuid={uuid.uuid5(_NAMESPACE, card.name)}",
        "type=ethernet",
        f"interface-name={card.name}",
        "autoconnect-priority=10",
        "",
        "[ipv4]",
        *_family(card.v4, {"dhcp": "auto", None: "disabled"}),
        "",
        "[ipv6]",
        *_family(card.v6, {"dhcp": "dhcp", "auto": "auto", None: "link-local"}),
    ]


def _family(way: Way, methods: dict[str | None, str]) -> list[str]:
    if not isinstance(way, Static):
        return [f"method={methods[way]}"]
    lines = ["method=manual", f"address1={way.cidr}"]
    if way.gateway is not None:
        lines.append(f"gateway={way.gateway}")
    if way.on_link:
        lines.append(f"route1={way.gateway}/{way.interface.ip.max_prefixlen}")
    return lines
