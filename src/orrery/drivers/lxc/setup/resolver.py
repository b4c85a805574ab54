# SPDX-License-Identifier: AGPL-3.0-or-later
"""The resolver: /etc/resolv.conf (resolv.conf(5)), or systemd-resolved where the file is a link to its own.

What is configured is written. Without it a container with DHCP or SLAAC learns by itself, and one with fixed addresses
alone gets what the host uses.
"""

from ipaddress import ip_address
from pathlib import Path
from typing import Final

from orrery.drivers.lxc.setup.blocks import put_block, write_text
from orrery.drivers.lxc.setup.plan import Setup
from orrery.drivers.lxc.tree import Tree

_FILE: Final = "/etc/resolv.conf"
_RESOLVED: Final = "/etc/systemd/resolved.conf.d/orrery.conf"
_RESOLVED_PROGRAMS: Final = ("/usr/lib/systemd/systemd-resolved", "/lib/systemd/systemd-resolved")
_HOST_FILES: Final = (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf"))
_MOST: Final = 3  # the C library reads no more


def resolver(tree: Tree, setup: Setup, host_files: tuple[Path, ...] = _HOST_FILES) -> None:
    """Name servers and search domains."""
    servers, domains = _wanted(setup, host_files)
    link = tree.readlink(_FILE)
    if link is not None and "systemd/resolve" in link and any(map(tree.is_file, _RESOLVED_PROGRAMS)):
        _for_resolved(tree, servers, domains)
        return
    tree.remove(_RESOLVED)
    if not servers and not domains:
        if link is None:
            put_block(tree, _FILE, [])
        return
    body = [*([f"search {' '.join(domains)}"] if domains else []), *(f"nameserver {each}" for each in servers[:_MOST])]
    if link is not None:
        # A link into /run, of a service that is not there or that we have no say in: fixed words in its place.
        tree.remove(_FILE)
    if setup.fresh and link is None:
        # What stands there is about the machine that the template was built on.
        tree.remove(_FILE)
    put_block(tree, _FILE, body, first=True)


def _wanted(setup: Setup, host_files: tuple[Path, ...]) -> tuple[list[str], list[str]]:
    if setup.nameservers or setup.searchdomains:
        return setup.nameservers, setup.searchdomains
    cards = setup.cards()
    learns = any(way in ("dhcp", "auto") for card in cards for way in (card.v4, card.v6))
    if learns or not any(card.statics for card in cards):
        return [], []
    return of_host(host_files)


def of_host(host_files: tuple[Path, ...] = _HOST_FILES) -> tuple[list[str], list[str]]:
    """Name servers and search domains of the host; those that only the host itself can reach are left out."""
    domains: list[str] = []
    for path in host_files:
        servers = []
        try:
            lines = [line.split() for line in path.read_text("utf-8", "replace").splitlines()]
        except OSError:
            continue
        for fields in lines:
            if fields[:1] == ["search"]:
                domains = fields[1:]
            if fields[:1] == ["nameserver"] and len(fields) > 1 and _reachable(fields[1]):
                servers.append(fields[1])
        if servers:
            return servers, domains
    return [], []


def _reachable(text: str) -> bool:
    try:
        address = ip_address(text)
    except ValueError:  # with a zone, as fe80::1%eth0: it means nothing elsewhere
        return False
    return not (address.is_loopback or address.is_link_local or address.is_unspecified)


def _for_resolved(tree: Tree, servers: list[str], domains: list[str]) -> None:
    if not servers and not domains:
        tree.remove(_RESOLVED)
        return
    lines = ["[Resolve]", *([f"DNS={' '.join(servers)}"] if servers else [])]
    lines += [f"Domains={' '.join(domains)}"] if domains else []
    write_text(tree, _RESOLVED, "# Written by Orrery; changes are lost.\n" + "\n".join(lines) + "\n")
