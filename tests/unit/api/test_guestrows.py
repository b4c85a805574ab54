# SPDX-License-Identifier: AGPL-3.0-or-later
"""Rows of guests: the kept ones say the same as those that are made anew, and follow every change."""

import json
from dataclasses import replace

from orrery.api.guestrows import RestingRows, resource_row
from orrery.api.reply import encode
from orrery.metrics.facts import GuestFacts, facts
from orrery.model.guest import GuestConfig


def guest(vmid: int = 100, **options: str) -> GuestFacts:
    return facts(vmid, "qemu", "alpha", 1, GuestConfig(options=options))


def shown(rows: RestingRows, found: GuestFacts, pool: str | None = None) -> object:
    return json.loads(encode([rows.row(found, pool)]))[0]


def test_a_kept_row_is_the_row() -> None:
    rows = RestingRows()
    found = guest(name="true", tags="a;b", lock="backup", template="1")
    for _ in range(2):
        assert shown(rows, found, "p") == resource_row(found, None, "p")


def test_it_is_made_once() -> None:
    rows = RestingRows()
    found = guest()
    assert rows.row(found, None) is rows.row(found, None)


def test_it_follows_the_configuration_and_the_pool() -> None:
    rows = RestingRows()
    found = guest(name="one")
    assert shown(rows, found)["name"] == "one"  # type: ignore[index]
    assert shown(rows, replace(found, name="two"))["name"] == "two"  # type: ignore[index]
    assert "pool" not in shown(rows, found)  # type: ignore[operator]
    assert shown(rows, found, "p")["pool"] == "p"  # type: ignore[index]
    assert "pool" not in shown(rows, found)  # type: ignore[operator]


def test_rows_of_guests_that_are_gone_are_forgotten() -> None:
    rows = RestingRows()
    for vmid in range(100, 500):
        rows.row(guest(vmid), None)
    rows.keep(400)
    assert len(rows._rows) == 400
    rows.keep(10)
    assert not rows._rows
