# SPDX-License-Identifier: AGPL-3.0-or-later
"""What of a change a running container is told, and what waits for its next start."""

from types import SimpleNamespace
from typing import Any

import pytest

from orrery.errors import Failure
from orrery.model.guest import GuestConfig
from orrery.operations.container_live import apply_live

NIC = "name=eth0,bridge=vmbr0,hwaddr=BC:24:11:00:00:01,type=veth"


class Told:
    """Stands for driver and network; notes what it is asked, and fails where it is told to."""

    def __init__(self, failing: str = "") -> None:
        self.calls: list[str] = []
        self._failing = failing

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            self.calls.append(name)
            if name == self._failing:
                self._failing = ""
                raise Failure(f"{name} failed")
            return []

        return call


def change(key: str, old: str | None, new: str | None, failing: str = "") -> tuple[bool, list[str]]:
    told = Told(failing)
    ctx: Any = SimpleNamespace(containers=told, network=told)
    task: Any = SimpleNamespace(log=lambda text: None)
    before = GuestConfig(options={key: old} if old is not None else {})
    after = GuestConfig(options={key: new} if new is not None else {})
    try:
        return apply_live(ctx, task, 100, before, after, key), told.calls
    except Failure:
        told.calls.append("raised")
        return False, told.calls


@pytest.mark.parametrize("key", ["memory", "swap", "cores", "cpulimit", "cpuunits", "affinity"])
def test_limits_hold_at_once(key: str) -> None:
    assert change(key, None, "1") == (True, ["apply_limits"])


@pytest.mark.parametrize("key", ["description", "onboot", "protection", "startup", "tags", "unused0"])
def test_what_concerns_us_alone_needs_nobody(key: str) -> None:
    assert change(key, None, "1") == (True, [])


@pytest.mark.parametrize("key", ["hostname", "nameserver", "ostype", "features", "tty", "entrypoint", "idmap"])
def test_what_a_container_is_started_with_waits(key: str) -> None:
    assert change(key, None, "1") == (False, [])


@pytest.mark.parametrize("part", ["tag=5", "rate=3", "link_down=1", "trunks=2;3"])
def test_the_hosts_end_of_a_card_changes_alone(part: str) -> None:
    assert change("net0", NIC, f"{NIC},{part}") == (True, ["veth_reconnect"])


def test_cards_come_and_go() -> None:
    assert change("net0", None, NIC) == (True, ["veth_create", "attach_nic", "address_nic"])
    assert change("net0", NIC, None) == (True, ["detach_nic", "tap_remove"])
    moved = change("net0", f"{NIC},ip=10.0.0.2/24", f"{NIC},ip=10.0.0.3/24")
    assert moved == (True, ["detach_nic", "tap_remove", "veth_create", "attach_nic", "address_nic"])


def test_an_address_that_the_inside_holds_waits() -> None:
    assert change("net0", f"{NIC},ip=dhcp", f"{NIC},ip=10.0.0.3/24") == (False, [])
    assert change("net0", f"{NIC},ip=dhcp", f"{NIC},ip=dhcp,tag=5") == (True, ["veth_reconnect"])


def test_a_card_that_is_not_taken_leaves_no_end_on_the_host() -> None:
    done, calls = change("net0", None, NIC, failing="attach_nic")
    assert (done, calls) == (False, ["veth_create", "attach_nic", "tap_remove", "raised"])


def test_the_old_card_is_put_back_when_the_new_one_is_not_taken() -> None:
    done, calls = change("net0", f"{NIC},ip=10.0.0.2/24", f"{NIC},ip=10.0.0.3/24", failing="address_nic")
    assert not done
    assert calls[-4:] == ["veth_create", "attach_nic", "address_nic", "raised"]


def test_folders_are_plugged_and_unplugged() -> None:
    assert change("mp0", None, "/tmp,mp=/x") == (True, ["attach_mount"])
    assert change("mp0", "/tmp,mp=/x", None) == (True, ["detach_mount"])
    assert change("mp0", "/tmp,mp=/x", "/tmp,mp=/x,backup=1") == (True, [])
    assert change("mp0", "/tmp,mp=/x", "/tmp,mp=/y") == (True, ["detach_mount", "attach_mount"])
    done, calls = change("mp0", "/tmp,mp=/x", "/tmp,mp=/y", failing="attach_mount")
    assert (done, calls) == (False, ["detach_mount", "attach_mount", "attach_mount", "raised"])


def test_devices_are_plugged_and_unplugged() -> None:
    assert change("dev0", None, "/dev/null") == (True, ["attach_device"])
    assert change("dev0", "/dev/null", "/dev/zero") == (True, ["detach_device", "attach_device"])
    assert change("dev0", "/dev/null", None) == (True, ["detach_device"])
