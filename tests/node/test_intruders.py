# SPDX-License-Identifier: AGPL-3.0-or-later
"""Users who reach for what is not theirs: others' disks, others' machines by other spellings, root's account."""

from collections.abc import Iterator
from typing import Any

import pytest
from tests.node.client import Api
from tests.node.harness import Guest, Node

from orrery.errors import ParameterError
from orrery.model.guest import GuestConfig
from orrery.operations.guest_disk import MoveDisk


@pytest.fixture(scope="module")
def victim(node: Node) -> Iterator[Guest]:
    """Somebody else's machine."""
    made = node.guest(scsi0="local:0.0625")
    yield made
    made.destroy()


@pytest.fixture
def own(node: Node) -> Iterator[Guest]:
    """The intruder's machine."""
    made = node.guest(scsi0="local:0.0625")
    yield made
    made.destroy()


class Intruder:
    """A user with a password; `grant` gives a role on a path."""

    def __init__(self, node: Node, name: str) -> None:
        self.node = node
        self.user = f"{name}@pve"
        node.api.post("/access/users", userid=self.user, password="password123")
        self.api: Api = node.anonymous().log_in(self.user, "password123")

    def grant(self, role: str, path: str) -> None:
        self.node.api.put("/access/acl", path=path, roles=role, users=self.user)

    def status(self, verb: str, path: str, **parameters: Any) -> int:
        return self.api.send(verb, path, parameters).status_code


@pytest.fixture
def intruder(node: Node) -> Iterator[Intruder]:
    """A user without rights."""
    made = Intruder(node, "intruder")
    yield made
    made.api.close()
    node.api.delete(f"/access/users/{made.user}")


@pytest.fixture
def owner(intruder: Intruder, own: Guest) -> Intruder:
    """A user who may do everything with one machine, and use the storage."""
    intruder.grant("PVEVMAdmin", f"/vms/{own.vmid}")
    intruder.grant("PVEDatastoreUser", "/storage/local")
    return intruder


def disk_of(guest: Guest) -> str:
    return str(guest.config()["scsi0"]).split(",")[0]


def test_unused_disks_are_no_way_to_others_disks(owner: Intruder, own: Guest, victim: Guest) -> None:
    stolen = disk_of(victim)
    assert owner.status("POST", f"{own.path}/config", unused0=stolen) == 403
    assert owner.status("PUT", f"{own.path}/config", unused0=stolen) == 403
    assert owner.status("POST", f"{own.path}/config", unused0="local:1") == 400
    assert owner.status("POST", f"{own.path}/config", unused0=f"local:{own.vmid}/vm-{own.vmid}-disk-7.raw") == 400
    assert "unused0" not in own.config()
    response = own.node.root.send("POST", f"{own.path}/config", {"unused0": stolen})
    assert response.status_code == 400, "nobody, root included, mixes up whose image it is"


def test_a_new_machine_does_not_begin_with_others_disks(intruder: Intruder, node: Node, victim: Guest) -> None:
    vmid = node.next_vmid()
    intruder.grant("PVEVMAdmin", f"/vms/{vmid}")
    intruder.grant("PVEDatastoreUser", "/storage/local")
    for key in ("unused0", "scsi0"):
        assert intruder.status("POST", f"{node.path}/qemu", vmid=vmid, **{key: disk_of(victim)}) == 403
    assert vmid not in [row["vmid"] for row in node.api.get(f"{node.path}/qemu")]


def test_only_a_machines_own_disks_are_moved() -> None:
    """Also when its configuration came to name another's."""
    config = GuestConfig(options={"unused0": "local:101/vm-101-disk-0.raw"})
    with pytest.raises(ParameterError):
        MoveDisk(100, "unused0", "local").volume(config)


def test_a_machines_number_has_one_spelling(intruder: Intruder, own: Guest) -> None:
    """Rights are judged on the path as it is sent, so another spelling would be judged by rules from further up."""
    intruder.grant("PVEVMAdmin", "/vms")
    intruder.grant("NoAccess", f"/vms/{own.vmid}")
    assert intruder.status("GET", f"{own.path}/config") == 403
    for spelling in (f"0{own.vmid}", f"+{own.vmid}", f"00{own.vmid}", f"{own.vmid}.0", f" {own.vmid}"):
        path = f"{own.node.path}/qemu/{spelling}"
        assert intruder.status("GET", f"{path}/config") in (400, 403), spelling
        assert intruder.status("POST", f"{path}/status/start") in (400, 403), spelling
