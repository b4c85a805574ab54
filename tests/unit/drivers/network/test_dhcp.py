# SPDX-License-Identifier: AGPL-3.0-or-later
"""The DHCP service's configuration and leases."""

from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orrery.drivers.network import dhcp
from orrery.drivers.network.dhcp import Lease


def test_configuration_names_the_bridge_and_the_range() -> None:
    lines = dhcp.configuration("vmbr0", IPv4Network("10.64.16.0/20")).splitlines()
    assert "interface=vmbr0" in lines
    assert "bind-interfaces" in lines
    assert "except-interface=lo" in lines
    assert "dhcp-range=10.64.16.16,10.64.31.254,255.255.240.0,1h" in lines
    assert "dhcp-option=option:router,10.64.16.1" in lines
    assert "dhcp-option=option:dns-server,10.64.16.1" in lines
    assert "dhcp-lease-max=4079" in lines
    assert not [line for line in lines if "script" in line or "tftp" in line]


def test_leases() -> None:
    text = (
        "1700000000 bc:24:11:00:00:01 10.64.16.20 web 01:bc:24:11:00:00:01\n"
        "1700000001 bc:24:11:00:00:02 10.64.16.21 * *\n"
        "duid 00:01\nbroken line here too\n1700000002 bc:24:11:00:00:03 10.64.16.999 x *\n"
        "1700000003 123 fe80::1 v6 *\n"
    )
    assert dhcp.parse_leases(text) == [
        Lease("BC:24:11:00:00:01", IPv4Address("10.64.16.20"), 1700000000, "web"),
        Lease("BC:24:11:00:00:02", IPv4Address("10.64.16.21"), 1700000001, None),
    ]


@given(st.text())
def test_any_text_as_leases(text: str) -> None:
    assert all(lease.expires >= 0 for lease in dhcp.parse_leases(text))


def test_name_servers_of_the_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resolv = tmp_path / "resolv.conf"
    monkeypatch.setattr(dhcp, "_HOST_RESOLV", resolv)
    assert dhcp.host_name_servers() == []
    resolv.write_text("# x\nnameserver 10.0.0.53\nnameserver ::1\nnameserver\nsearch a.b\nnameserver  1.1.1.1 \n")
    assert dhcp.host_name_servers() == [IPv4Address("10.0.0.53"), IPv4Address("1.1.1.1")]
