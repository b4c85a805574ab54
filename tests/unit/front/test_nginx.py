# SPDX-License-Identifier: AGPL-3.0-or-later
"""The front's configuration follows from its settings alone."""

from pathlib import Path

import pytest

from orrery.front.nginx import Address, Settings, configuration

GOLDEN = Path(__file__).parents[2] / "golden" / "nginx"


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("default", Settings(listen=Address("0.0.0.0", 8006))),
        ("ipv6", Settings(listen=Address("::", 443), workers=4, header_timeout=5, connections_per_address=10)),
    ],
)
def test_golden(name: str, settings: Settings) -> None:
    expected = GOLDEN / f"{name}.conf"
    assert configuration(settings) == expected.read_text()


@pytest.mark.parametrize(
    ("text", "address", "shown"),
    [
        ("127.0.0.1:8006", Address("127.0.0.1", 8006), "127.0.0.1:8006"),
        ("[::1]:8006", Address("::1", 8006), "[::1]:8006"),
        ("::1:8006", Address("::1", 8006), "[::1]:8006"),
        ("[0:0::0]:1", Address("::", 1), "[::]:1"),
    ],
)
def test_addresses(text: str, address: Address, shown: str) -> None:
    assert Address.parse(text) == address
    assert str(address) == shown


@pytest.mark.parametrize(
    "text", ["", "8006", "host:8006", "1.2.3.4", "1.2.3.4:0", "1.2.3.4:65536", "1.2.3.4:x", "1.2.3.4:٣", ":1"]
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match=r"address|ADDRESS"):
        Address.parse(text)
