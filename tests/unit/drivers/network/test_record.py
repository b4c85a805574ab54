# SPDX-License-Identifier: AGPL-3.0-or-later
"""What is written down before the host's network is changed."""

import json
import stat
from dataclasses import replace
from ipaddress import IPv4Interface, IPv4Network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orrery.drivers.network import record
from orrery.drivers.network.record import NetworkRecord
from orrery.errors import Corrupt, Failure

KNOWN = NetworkRecord("boot:1", "02:00:00:00:00:01", IPv4Network("10.64.16.0/20"), "0")


def test_round_trip_and_rights(tmp_path: Path) -> None:
    path = tmp_path / "network.json"
    assert record.load(path) is None
    KNOWN.save(path)
    assert record.load(path) == KNOWN
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert KNOWN.gateway == IPv4Interface("10.64.16.1/20")


@pytest.mark.parametrize(
    "change", [{"subnet": "10.64.16.1/20"}, {"mac": ...}, {"forward_before": "7"}, {"version": 2}, {"scope": ...}]
)
def test_damage_is_refused_and_explained(tmp_path: Path, change: dict[str, object]) -> None:
    path = tmp_path / "network.json"
    KNOWN.save(path)
    values = json.loads(path.read_text()) | change
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not ...}))
    with pytest.raises(Corrupt, match=r"restore it from a backup|newer version"):
        record.load(path)
    path.write_text("[]")
    with pytest.raises(Corrupt):
        record.load(path)


@given(
    st.lists(st.sampled_from(["10.0.0.0/9", "10.64.0.0/13", "10.77.0.0/24", "0.0.0.0/1", "192.168.0.0/16"])),
    st.integers(0),
)
def test_the_subnet_is_free_private_and_large(used: list[str], seed: int) -> None:
    networks = [IPv4Network(text) for text in used]
    try:
        found = record.free_subnet(networks, seed)
    except Failure as error:
        assert "is in use" in error.message  # noqa: PT017
        assert any(network.overlaps(IPv4Network("10.64.0.0/12")) for network in networks)
        return
    assert found.is_private
    assert found.num_addresses == 4096
    assert not any(found.overlaps(network) for network in networks)


def test_roots_begin_at_different_places() -> None:
    assert record.free_subnet([], 1) != record.free_subnet([], 2)
    assert record.free_subnet([], 1) == record.free_subnet([], 257)


def test_a_new_boot_keeps_subnet_and_mac_where_they_fit() -> None:
    again = record.fresh(KNOWN, [IPv4Network("192.168.0.0/24")], 0)
    assert again == replace(KNOWN, scope=record.current_scope(), forward_before=None)
    other = record.fresh(KNOWN, [IPv4Network("10.64.20.0/24")], 0)
    assert not other.subnet.overlaps(IPv4Network("10.64.20.0/24"))
    assert other.mac != KNOWN.mac


def test_mac_is_local_and_of_one_station() -> None:
    first = int(record.random_mac().split(":")[0], 16)
    assert first & 0b11 == 0b10
    assert record.random_mac() != record.random_mac()
