# SPDX-License-Identifier: AGPL-3.0-or-later
"""Names of taps: short, of one root, and readable backwards."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orrery.drivers.network.taps import own_taps, parse_tap_name, tap_name

HASH = "0a1b2c"


@given(st.integers(1, 999_999_999), st.integers(0, 31))
def test_every_card_of_every_guest_has_a_name_of_its_own(vmid: int, index: int) -> None:
    name = tap_name(HASH, vmid, index)
    assert len(name) <= 15
    assert parse_tap_name(HASH, name) == (vmid, index)
    assert parse_tap_name("ffffff", name) is None


@given(st.text(max_size=15))
def test_foreign_names_are_not_ours(name: str) -> None:
    parsed = parse_tap_name(HASH, name)
    assert parsed is None or tap_name(HASH, *parsed) == name


@pytest.mark.parametrize("name", ["", "eth0", f"o{HASH}", f"o{HASH}1", f"o{HASH}0001", f"o{HASH}2sz", f"o{HASH}2S0"])
def test_names_that_no_tap_has(name: str) -> None:
    assert parse_tap_name(HASH, name) is None


@pytest.mark.parametrize(("vmid", "index"), [(0, 0), (-1, 0), (1_000_000_000, 0), (100, 32), (100, -1)])
def test_numbers_that_no_guest_has(vmid: int, index: int) -> None:
    with pytest.raises(ValueError, match="has no network card"):
        tap_name(HASH, vmid, index)


def test_own_taps_in_order() -> None:
    names = ["lo", tap_name(HASH, 200, 0), tap_name(HASH, 100, 1), tap_name("ffffff", 100, 0), tap_name(HASH, 100, 0)]
    assert list(own_taps(HASH, names)) == [(100, 0), (100, 1), (200, 0)]
