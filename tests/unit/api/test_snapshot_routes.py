# SPDX-License-Identifier: AGPL-3.0-or-later
"""The list of snapshots: inventories ask every machine for it and give up on an error."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from tests.unit.api.conftest import NODE
from tests.unit.api.wire import Wire

from orrery.api.services import Services
from orrery.model.guest import GuestConfig, GuestRecord, SnapshotSection
from orrery.store.guests import add_guest

LIST = f"/nodes/{NODE}/qemu/100/snapshot"


@pytest.fixture
def services(services: Services) -> Services:
    running: Any = SimpleNamespace(sample=lambda vmid: object() if vmid == 100 else None)
    return replace(services, collector=running)


def put(services: Services, vmid: int, config: GuestConfig) -> None:
    add_guest(services.store, GuestRecord(vmid, "qemu", NODE, config))


def test_a_machine_without_snapshots_has_its_present_state(services: Services, admin: Wire) -> None:
    config = GuestConfig(options={"name": "web"})
    put(services, 100, config)
    current = {"name": "current", "description": "You are here!", "digest": config.digest(), "running": 1}
    assert admin.get(LIST).data == [current]


def test_snapshots_of_a_configuration_that_was_taken_over(services: Services, admin: Wire) -> None:
    first = SnapshotSection({"memory": "512", "snaptime": "1700000000"}, "before the upgrade")
    second = SnapshotSection({"snaptime": "1700000001", "parent": "first", "vmstate": "local:100/x.raw"})
    put(services, 101, GuestConfig(options={"parent": "second"}, snapshots={"first": first, "second": second}))
    rows = admin.get(LIST.replace("100", "101")).data
    assert rows[0] == {"name": "first", "description": "before the upgrade", "snaptime": 1700000000}
    assert rows[1] == {
        "name": "second",
        "description": "",
        "snaptime": 1700000001,
        "parent": "first",
        "vmstate": 1,
    }
    assert (rows[2]["name"], rows[2]["parent"], rows[2]["running"]) == ("current", "second", 0)


def test_taking_one_is_not_supported_yet(services: Services, admin: Wire) -> None:
    put(services, 100, GuestConfig())
    assert admin.post(LIST, snapname="first").status == 501
