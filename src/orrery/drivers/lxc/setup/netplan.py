# SPDX-License-Identifier: AGPL-3.0-or-later
"""Cards for netplan (its YAML reference): one file of ours, read after the others, whose single values win."""

from typing import Final

from orrery.drivers.lxc.setup.blocks import write_text
from orrery.drivers.lxc.setup.plan import Card, Setup
from orrery.drivers.lxc.tree import Tree

_FOLDER: Final = "/etc/netplan"
_FILE: Final = f"{_FOLDER}/90-orrery.yaml"
_HEAD: Final = "# Written by Orrery; changes are lost."


def present(tree: Tree) -> bool:
    """Whether the tree has it."""
    return tree.is_dir(_FOLDER) and (tree.exists("/usr/sbin/netplan") or tree.exists("/usr/bin/netplan"))


def write(tree: Tree, setup: Setup) -> None:
    """Write the file, or remove it when there is nothing to say."""
    cards = [card for card in setup.cards() if card.managed]
    if not cards:
        tree.remove(_FILE)
        return
    lines = [_HEAD, "network:", "  version: 2", "  ethernets:"]
    for card in cards:
        lines += [f'    "{card.name}":', *(f"      {line}" for line in _text(card))]
    write_text(tree, _FILE, "".join(f"{line}\n" for line in lines), 0o600)


def _text(card: Card) -> list[str]:
    lines = [
        f"dhcp4: {_bool(card.v4 == 'dhcp')}",
        f"dhcp6: {_bool(card.v6 == 'dhcp')}",
        f"accept-ra: {_bool(card.v6 in ('auto', 'dhcp'))}",
    ]
    if card.statics:
        lines.append("addresses: [" + ", ".join(f'"{way.cidr}"' for way in card.statics) + "]")
    routes = [way for way in card.statics if way.gateway is not None]
    if routes:
        lines.append("routes:")
    for way in routes:
        to = "0.0.0.0/0" if way.interface.version == 4 else "::/0"
        on_link = ", on-link: true" if way.on_link else ""
        lines.append(f'  - {{to: "{to}", via: "{way.gateway}"{on_link}}}')
    return lines


def _bool(value: bool) -> str:
    return "true" if value else "false"
