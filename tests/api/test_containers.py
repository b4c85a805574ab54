# SPDX-License-Identifier: AGPL-3.0-or-later
"""A real container over the API: what replies say of it, as clients rely on it, from its making to its end."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from tests.node.client import ApiError
from tests.node.harness import Container, Node, eventually

pytestmark = [pytest.mark.root, pytest.mark.xdist_group("api-containers")]

PASSWORD = "Zq7unlikely word"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHz1l2Dc5H1OIA0+IgkQCY4ppgSQf8Mk0l2S4l3JkfXm anna@laptop"


@pytest.fixture(scope="module")
def container(node: Node, template: str) -> Iterator[Container]:
    """One that runs, with a range of ids of its own."""
    options: dict[str, Any] = {
        "hostname": "web1",
        "idmap": "own",
        "features": "nesting=1",
        "env": "COLOR=blue\0EMPTY=",
        "password": PASSWORD,
        "ssh-public-keys": KEY,
        "mp0": "local:0.0625,mp=/srv/data,ro=1",
        "tags": "b;a",
        "swap": 0,
    }
    made = node.container(template, start=True, **options)
    made.address()
    yield made
    with_force = node.api.delete(made.path, force=1)
    node.api.wait(with_force)
    with pytest.raises(ApiError, match=rf"lxc/{made.vmid}.conf' does not exist"):
        made.config()


def row_of(node: Node, path: str, vmid: int) -> dict[str, Any]:
    return next(row for row in node.api.get(path) if row.get("vmid") == vmid)


def test_lists_tell_of_it(node: Node, container: Container) -> None:
    listed = row_of(node, f"{node.path}/lxc", container.vmid)
    assert (listed["name"], listed["status"], listed["type"], listed["tags"]) == ("web1", "running", "lxc", "a;b")
    assert (listed["maxmem"], listed["maxswap"], listed["maxdisk"]) == (64 << 20, 0, 64 << 20)
    resource = row_of(node, "/cluster/resources", container.vmid)
    assert (resource["id"], resource["type"], resource["node"]) == (f"lxc/{container.vmid}", "lxc", node.name)
    assert container.vmid not in [row["vmid"] for row in node.api.get(f"{node.path}/qemu")]
    numbers = ("cpu", "cpus", "disk", "diskread", "diskwrite", "maxdisk", "maxmem", "maxswap", "mem", "netin", "netout")

    def measured() -> dict[str, Any] | None:
        state = container.status()
        return state if state["mem"] and state["disk"] else None

    state = eventually(measured, 60, "a sample of the container")
    assert all(isinstance(state[key], int | float) for key in (*numbers, "uptime", "pid", "vmid", "swap")), state
    assert state["mem"] < 64 << 20
    assert 0 < state["disk"] < state["maxdisk"]
    assert state["ha"] == {"managed": 0}


def test_its_configuration_is_as_it_was_asked_for(container: Container) -> None:
    config = container.config()
    assert config["rootfs"].startswith("local:")
    assert config["rootfs"].endswith("size=64M")
    assert "mp=/srv/data,ro=1,size=64M" in config["mp0"]
    assert (config["unprivileged"], config["memory"], config["swap"]) == (1, 64, 0)
    assert (config["env"], config["idmap"], config["features"]) == ("COLOR=blue\0EMPTY=", "own", "nesting=1")
    assert "hwaddr=BC:24:11:" in config["net0"]
    assert PASSWORD not in json.dumps(config)


def test_inside_it_is_as_the_configuration_says(container: Container) -> None:
    assert container.inside("hostname") == "web1"
    assert KEY in container.inside("cat", "/root/.ssh/authorized_keys")
    assert ":$6$" in container.inside("sh", "-c", "grep ^root: /etc/shadow")
    assert "ro" in container.inside("sh", "-c", "grep ' /srv/data ' /proc/mounts").split()[3].split(",")
    inside, outside, count = container.inside("cat", "/proc/self/uid_map").split()
    assert (int(inside), int(count)) == (0, 65536)
    assert int(outside) >= 1 << 30
    assert "COLOR=blue" in container.inside("sh", "-c", "tr '\\0' '\\n' < /proc/1/environ")


def test_its_addresses_are_told(container: Container) -> None:
    card = next(card for card in container.api.get(f"{container.path}/interfaces") if card["name"] == "eth0")
    assert card["hwaddr"] == card["hardware-address"]
    address = next(each for each in card["ip-addresses"] if each["ip-address-type"] == "inet")
    assert card["inet"] == f"{address['ip-address']}/{address['prefix']}"


def test_changes_take_effect_or_wait(container: Container) -> None:
    container.set(memory=96, hostname="web2", description="näme\nof it")
    config = container.config()
    assert (config["memory"], config["hostname"], config["description"]) == (96, "web2", "näme\nof it")
    assert container.pending() == {"hostname": "web2"}
    assert container.config(current=1)["hostname"] == "web1"
    container.set(revert="hostname")
    assert container.pending() == {}


def test_neither_password_nor_variables_are_in_any_log(node: Node, container: Container) -> None:
    for path in [*node.paths.log.rglob("*"), node.paths.tasks_db]:
        if path.is_file():
            content = path.read_bytes()
            assert PASSWORD.encode() not in content, path
            assert b"COLOR=blue" not in content or path == node.paths.tasks_db, path


def test_what_cannot_be_changed_is_said(container: Container) -> None:
    for options, fault in (
        ({"unprivileged": 0}, "unprivileged"),
        ({"delete": "rootfs"}, "delete"),
        ({"mp1": "local:1,mp=/srv/data"}, "mp1"),
        ({"idmap": "u:0:0:1"}, "idmap"),
    ):
        with pytest.raises(ApiError) as refused:
            container.api.put(f"{container.path}/config", options)
        assert (refused.value.status, list(refused.value.errors)) == (400, [fault])
