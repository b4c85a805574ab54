# SPDX-License-Identifier: AGPL-3.0-or-later
"""A machine's state, and changes of its configuration: who may, and what is told of those that take long."""

from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest
from tests.unit.api.conftest import NODE
from tests.unit.api.wire import Wire

from orrery.api.services import Services
from orrery.model.guest import GuestConfig, GuestRecord
from orrery.operations.guest_change import ChangeMachine
from orrery.store.guests import add_guest
from orrery.tasks.task import Upid

PATH = f"/nodes/{NODE}/qemu/100"
UPID = Upid(NODE, 1, 1, 1, "qmconfig", "100", "admin@pve")
DISK = "local:100/vm-100-disk-0.raw,size=1G"


@dataclass
class Starter:
    """Notes what would be started; the tasks end with `status`, or never."""

    status: str | None = "OK"
    started: list[Any] = field(default_factory=list)

    def start(self, operation: Any, identity: Any) -> Upid:
        self.started.append(operation)
        return UPID

    def wait(self, upid: Upid, timeout: float) -> Any:
        return SimpleNamespace(status=self.status)


@pytest.fixture
def runner() -> Starter:
    return Starter()


@pytest.fixture
def services(services: Services, runner: Starter) -> Services:
    options = {"boot": "order=scsi0;net0", "scsi0": DISK, "net0": "virtio=BC:24:11:00:00:01,bridge=vmbr0"}
    options["ide2"] = "none,media=cdrom"
    add_guest(services.store, GuestRecord(100, "qemu", NODE, GuestConfig(options=options)))
    context: Any = SimpleNamespace(store=services.store, node=NODE)
    reached: Any = runner
    collector: Any = SimpleNamespace(sample=lambda vmid: None)
    return replace(services, runner=reached, context=context, collector=collector)


@pytest.mark.parametrize(
    ("verb", "path", "params"), [("PUT", "/config", {"name": "x"}), ("PUT", "/unlink", {"idlist": "scsi0"})]
)
def test_a_change_that_is_not_done_in_time_is_not_told_as_done(
    verb: str, path: str, params: dict[str, str], runner: Starter, admin: Wire
) -> None:
    assert admin.put(PATH + path, **params).status == 200
    runner.status = None
    late = admin.put(PATH + path, **params)
    assert late.status == 500
    assert str(UPID) in late.reason


def test_detaching_takes_the_right_to_what_is_detached(services: Services, admin: Wire, stranger: Wire) -> None:
    admin.post("/access/users", userid="disks@pve", password="correct horse")
    admin.post("/access/roles", roleid="Disks", privs="VM.Config.Disk")
    admin.put("/access/acl", path="/vms/100", roles="Disks", users="disks@pve")
    disks = stranger.with_ticket("disks@pve", "correct horse")
    assert disks.put(f"{PATH}/unlink", idlist="scsi0").status == 200
    refused = disks.put(f"{PATH}/unlink", idlist="ide2")
    assert (refused.status, refused.reason) == (403, "Permission check failed (/vms/100, VM.Config.CDROM)")


def test_a_device_that_goes_leaves_the_boot_order_too(runner: Starter, admin: Wire) -> None:
    assert admin.put(f"{PATH}/config", delete="scsi0").status == 200
    assert runner.started == [ChangeMachine(100, {}, ("scsi0",))]
    unknown = admin.put(f"{PATH}/config", delete="scsi0", boot="order=scsi0")
    assert (unknown.status, list(unknown.errors)) == (400, ["boot"])


def test_the_state_of_a_machine_is_told_from_one_reading(admin: Wire) -> None:
    state = admin.get(f"{PATH}/status/current").data
    assert (state["status"], state["qmpstatus"], state["maxdisk"], state["name"]) == (
        *("stopped", "stopped"),
        *(1 << 30, "VM 100"),
    )


def test_what_creating_does_not_heed_is_refused_by_name(runner: Starter, admin: Wire) -> None:
    refused = admin.post(f"/nodes/{NODE}/qemu", vmid="101", storage="local")
    assert (refused.status, refused.reason) == (501, "parameter 'storage' is not supported yet")
    assert runner.started == []
