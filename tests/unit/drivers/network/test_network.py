# SPDX-License-Identifier: AGPL-3.0-or-later
"""Which of the host's addresses a node that listens on all of them tells."""

from ipaddress import IPv4Interface, IPv6Interface
from pathlib import Path

import pytest

from orrery.drivers.network.network import Network
from orrery.system import netlink
from orrery.system.netlink import Link
from orrery.system.paths import Paths


def link(name: str, *addresses: str, alias: str = "", up: bool = True) -> Link:
    found = tuple(IPv6Interface(text) if ":" in text else IPv4Interface(text) for text in addresses)
    return Link(1, name, "", "", 1500, up, up, None, alias, found)


def test_the_address_for_the_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = Paths.of(tmp_path)
    links = [
        link("lo", "127.0.0.1/8", "::1/128"),
        link("vmbr0", "10.64.0.1/20", alias=f"orrery:{paths.root_digest}"),
        link("down0", "192.0.2.1/24", up=False),
        link("eth0", "fe80::1/64", "169.254.1.1/16", "192.0.2.7/24"),
        link("eth1", "192.0.2.8/24"),
    ]
    monkeypatch.setattr(netlink, "links", lambda: {each.name: each for each in links})
    assert Network(paths, "n1").host_address() == "192.0.2.7"
    del links[3:]
    assert Network(paths, "n1").host_address() is None
