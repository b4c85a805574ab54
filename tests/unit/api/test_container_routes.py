# SPDX-License-Identifier: AGPL-3.0-or-later
"""Containers over the API: what is judged before a task starts, who may what, and what lists and readings say."""

import json
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Interface, IPv6Interface
from types import SimpleNamespace
from typing import Any

import pytest
from tests.unit.api.conftest import NODE
from tests.unit.api.wire import Wire

from orrery.access.shadow import matches
from orrery.api.services import Services
from orrery.metrics.collect import GuestSample
from orrery.metrics.facts import FactsCache
from orrery.model.guest import GuestConfig, GuestRecord, SnapshotSection
from orrery.operations.container_change import ChangeContainer
from orrery.operations.container_create import CreateContainer
from orrery.operations.container_destroy import DestroyContainer
from orrery.operations.container_disk import MoveVolume, ResizeMount
from orrery.operations.container_power import (
    RebootContainer,
    ResumeContainer,
    ShutdownContainer,
    StartContainer,
    StopContainer,
    SuspendContainer,
)
from orrery.store.guests import add_guest, read_guest, write_guest
from orrery.system.netlink import Link
from orrery.tasks import registry
from orrery.tasks.task import Upid

LXC = f"/nodes/{NODE}/lxc"
PATH = f"{LXC}/101"
UPID = Upid(NODE, 1, 1, 1, "vzcreate", "101", "admin@pve")
ROOT = "local:101/vm-101-disk-0.raw,size=8G"
TEMPLATE = "local:vztmpl/debian-12.tar.zst"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f me@home"
LINKS = [
    Link(1, "lo", "", "00:00:00:00:00:00", 65536, True, True, None, "", (IPv4Interface("127.0.0.1/8"),)),
    Link(
        *(2, "eth0", "veth", "bc:24:11:00:00:01", 1500, True, True, None, ""),
        addresses=(IPv4Interface("10.0.0.5/24"), IPv6Interface("fe80::1/64"), IPv6Interface("fd00::5/64")),
    ),
]
OPTIONS = {
    "unprivileged": "1",
    "rootfs": ROOT,
    "mp0": "local:101/vm-101-disk-1.raw,mp=/srv,size=4G",
    "hostname": "web1",
    "cores": "2",
    "memory": "1024",
    "swap": "256",
    "net0": "name=eth0,bridge=vmbr0,hwaddr=BC:24:11:00:00:01,type=veth",
    "env": "A=1\0B=2",
    "onboot": "1",
    "tags": "web",
}


@dataclass
class Starter:
    """Notes what would be started."""

    status: str | None = "OK"
    started: list[Any] = field(default_factory=list)

    def start(self, operation: Any, identity: Any) -> Upid:
        self.started.append(operation)
        return UPID

    def wait(self, upid: Upid, timeout: float) -> Any:
        return SimpleNamespace(status=self.status)


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> Starter:
    """What operations find out about the node's storages is their own tests' matter."""
    for kind in (CreateContainer, ChangeContainer, ResizeMount, MoveVolume, StartContainer):
        monkeypatch.setattr(kind, "check", lambda self, ctx: None)
    return Starter()


@pytest.fixture
def samples() -> dict[int, GuestSample]:
    return {}


@pytest.fixture
def services(services: Services, runner: Starter, samples: dict[int, GuestSample]) -> Services:
    section = SnapshotSection({"rootfs": ROOT, "memory": "256"}, "before")
    config = GuestConfig(options=OPTIONS, pending={"tty": "1"}, snapshots={"old": section})
    add_guest(services.store, GuestRecord(101, "lxc", NODE, config))
    add_guest(services.store, GuestRecord(100, "qemu", NODE, GuestConfig(options={"name": "vm"})))
    containers = SimpleNamespace(find=samples.get, interfaces=lambda vmid: LINKS)
    context: Any = SimpleNamespace(store=services.store, node=NODE, containers=containers)
    reached: Any = runner
    collector: Any = SimpleNamespace(
        sample=samples.get, samples=lambda: dict(samples), facts=FactsCache(services.store)
    )
    return replace(services, runner=reached, context=context, collector=collector)


@pytest.fixture
def user(admin: Wire, stranger: Wire) -> Any:
    """Makes a user with privileges on paths."""

    def make(**paths: str) -> Wire:
        admin.post("/access/users", userid="ann@pve", password="correct horse")
        for number, (path, privs) in enumerate(paths.items()):
            admin.post("/access/roles", roleid=f"R{number}", privs=privs)
            place = "/" + path.strip("_").replace("_", "/")
            assert admin.put("/access/acl", path=place, roles=f"R{number}", users="ann@pve").status == 200
        return stranger.with_ticket("ann@pve", "correct horse")

    return make


# Creating ------------------------------------------------------------------------------------------------------------


def test_the_least_that_makes_a_container(runner: Starter, admin: Wire) -> None:
    answer = admin.post(LXC, vmid="102", ostemplate=TEMPLATE)
    assert (answer.status, answer.data) == (200, str(UPID))
    assert runner.started == [
        CreateContainer(102, {"rootfs": "local:4", "unprivileged": "1"}, template=TEMPLATE, storage="local")
    ]


def test_everything_that_creating_takes(runner: Starter, admin: Wire, services: Services) -> None:
    admin.post("/pools", poolid="p")
    sent = {
        "vmid": "102",
        "ostemplate": TEMPLATE,
        "hostname": "web2",
        "password": "secret word",
        "ssh-public-keys": f"# mine\n{KEY}\n\n{KEY}",
        "storage": "fast",
        "pool": "p",
        "start": "1",
        "unprivileged": "1",
        "net0": "bridge=vmbr0,name=eth0,ip=dhcp",
        "env": "A=1\0B=2",
        "mp0": "fast:2,mp=/srv",
        "features": "nesting=1",
        "bwlimit": "1000.6",
        "ignore-unpack-errors": "0",
    }
    assert admin.post(LXC, **sent).status == 200
    (made,) = runner.started
    assert made.options == {
        "rootfs": "fast:4",
        "unprivileged": "1",
        "hostname": "web2",
        "net0": "bridge=vmbr0,ip=dhcp,name=eth0",
        "env": "A=1\0B=2",
        "mp0": "fast:2,mp=/srv",
        "features": "nesting=1",
    }
    assert (made.pool, made.start, made.storage, made.bwlimit) == ("p", True, "fast", 1001)
    assert made.ssh_keys == f"{KEY}\n{KEY}\n"
    assert made.password_hash.startswith("$6$")
    assert matches("secret word", made.password_hash)
    told = services.paths.audit_log.read_text() + json.dumps(registry.encode(made))
    assert "secret word" not in told


@pytest.mark.parametrize(
    ("params", "fault"),
    [
        ({}, "ostemplate"),
        ({"ostemplate": "debian"}, "ostemplate"),
        ({"ostemplate": "/etc/passwd"}, "ostemplate"),
        ({"ostemplate": "local:iso/x.iso"}, "ostemplate"),
        ({"ostemplate": "local:../../x.tar.gz"}, "ostemplate"),
        ({"ostemplate": TEMPLATE, "password": "1234"}, "password"),
        ({"ostemplate": TEMPLATE, "ssh-public-keys": "not a key"}, "ssh-public-keys"),
        ({"ostemplate": TEMPLATE, "ssh-public-keys": f"{KEY}\ncommand"}, "ssh-public-keys"),
        ({"ostemplate": TEMPLATE, "rootfs": "local:8,mp=/x"}, "rootfs"),
        ({"ostemplate": TEMPLATE, "mp0": "local:8"}, "mp0"),
        ({"ostemplate": TEMPLATE, "mp0": "local:8,mp=/a", "mp1": "local:8,mp=/a"}, "mp1"),
        ({"ostemplate": TEMPLATE, "idmap": "own", "unprivileged": "0"}, "idmap"),
        ({"ostemplate": TEMPLATE, "unique": "1"}, "restore"),
        ({"ostemplate": TEMPLATE, "name": "web"}, "name"),
        ({"ostemplate": TEMPLATE, "entrypoint": "/bin/sh '"}, "entrypoint"),
    ],
)
def test_what_makes_no_sense_is_refused_by_parameter(
    params: dict[str, str], fault: str, runner: Starter, admin: Wire
) -> None:
    refused = admin.post(LXC, vmid="102", **params)
    assert (refused.status, list(refused.errors)) == (400, [fault]), refused
    assert runner.started == []


@pytest.mark.parametrize(
    "params",
    [
        {"force": "1"},
        {"ha-managed": "1"},
        {"restore": "1"},
        {"restore": "1", "unique": "1"},
        {"net0": "name=eth0,firewall=1"},
        {"template": "1"},
        {"features": "mknod=1"},
    ],
)
def test_what_comes_later_is_refused_by_name(params: dict[str, str], runner: Starter, admin: Wire) -> None:
    refused = admin.post(LXC, vmid="102", ostemplate=TEMPLATE, **params)
    assert refused.status == 501
    assert any(word in refused.reason for word in (*params, "firewall", "mknod"))
    assert runner.started == []


ALL_RIGHTS = "VM.Allocate VM.Config.Disk VM.Config.CPU VM.Config.Memory VM.Config.Network VM.Config.Options"


def test_whoever_may_use_one_vlan_gets_no_others_as_trunks(user: Any, runner: Starter) -> None:
    bridge = {"_sdn_zones_localnetwork_vmbr0_5": "SDN.Use", "_sdn_zones_localnetwork_vmbr0_6": "SDN.Use"}
    rights = f"{ALL_RIGHTS} VM.Config.HWType"
    wire = user(vms=rights, storage_local="Datastore.AllocateSpace", **bridge)
    card = "name=eth0,bridge=vmbr0,tag=5,trunks="
    assert wire.post(LXC, vmid="102", ostemplate=TEMPLATE, net0=f"{card}5;6").status == 200
    denied = "Permission check failed (/sdn/zones/localnetwork/vmbr0/7, SDN.Use)"
    refused = wire.post(LXC, vmid="102", ostemplate=TEMPLATE, net0=f"{card}6;7")
    assert (refused.status, refused.reason) == (403, denied)
    refused = wire.post(LXC.replace("lxc", "qemu"), vmid="103", net0="virtio,bridge=vmbr0,tag=5,trunks=5-7")
    assert (refused.status, refused.reason) == (403, denied)
    assert len(runner.started) == 1


def test_who_may_create(user: Any, runner: Starter) -> None:
    wire = user(vms=ALL_RIGHTS, storage_local="Datastore.AllocateSpace")
    assert wire.post(LXC, vmid="102", ostemplate=TEMPLATE, features="nesting=1").status == 200
    for params, reason in (
        ({"net0": "name=eth0,bridge=vmbr0"}, "Permission check failed (/sdn/zones/localnetwork/vmbr0, SDN.Use)"),
        (
            {"net0": "name=eth0,bridge=vmbr0,tag=5"},
            "Permission check failed (/sdn/zones/localnetwork/vmbr0/5, SDN.Use)",
        ),
        ({"storage": "fast"}, "Permission check failed (/storage/fast, Datastore.AllocateSpace)"),
        ({"rootfs": "fast:8"}, "Permission check failed (/storage/fast, Datastore.AllocateSpace)"),
        ({"unprivileged": "0"}, "Permission check failed (/, Sys.Modify)"),
        ({"ostemplate": "fast:vztmpl/x.tar.gz"}, "Permission check failed (/storage/fast, Datastore.Allocate)"),
        ({"mp0": "/srv,mp=/srv"}, "only root@pam can set a mount point of type bind ('mp0')"),
        ({"mp0": "/dev/sda,mp=/srv"}, "only root@pam can set a mount point of type device ('mp0')"),
        ({"dev0": "/dev/kvm"}, "only root can set 'dev0' config"),
        ({"hookscript": "local:snippets/x"}, "only root can set 'hookscript' config"),
        ({"features": "keyctl=1"}, "changing feature flags (except nesting) is only allowed for root@pam"),
        ({"startup": "order=1"}, "Permission check failed (/, Sys.Modify)"),
        ({"unused0": "fast:100/vm-100-disk-0.raw"}, "Permission check failed (/storage/fast, Datastore.Allocate)"),
    ):
        sent: dict[str, str] = {"vmid": "102", "ostemplate": TEMPLATE} | params
        refused = wire.post(LXC, **sent)
        assert (refused.status, refused.reason) == (403, reason)
    assert len(runner.started) == 1


def test_allocation_is_needed_on_the_number_or_the_pool(user: Any, admin: Wire) -> None:
    wire = user(pool_p=ALL_RIGHTS, storage_local="Datastore.AllocateSpace")
    admin.post("/pools", poolid="p")
    assert wire.post(LXC, vmid="102", ostemplate=TEMPLATE, pool="p", cores="2").status == 200
    refused = wire.post(LXC, vmid="102", ostemplate=TEMPLATE)
    assert (refused.status, refused.reason) == (403, "Permission check failed (/vms/102, VM.Allocate)")


def test_root_may_what_reaches_the_host(stranger: Wire, runner: Starter) -> None:
    root = stranger.local()
    assert root.post(LXC, vmid="102", ostemplate=TEMPLATE, mp0="/srv,mp=/srv", unprivileged="0").status == 200
    assert runner.started[0].options["unprivileged"] == "0"


# Reading -------------------------------------------------------------------------------------------------------------


def test_a_container_in_lists(admin: Wire) -> None:
    (row,) = admin.get(LXC).data
    assert row["vmid"] == 101
    assert (row["type"], row["name"], row["status"], row["tags"]) == ("lxc", "web1", "stopped", "web")
    assert (row["cpus"], row["maxmem"], row["maxswap"], row["maxdisk"]) == (2, 1 << 30, 256 << 20, 8 << 30)
    assert "qmpstatus" not in row
    assert [found["vmid"] for found in admin.get(f"/nodes/{NODE}/qemu").data] == [100]


def test_a_running_container(admin: Wire, samples: dict[int, GuestSample]) -> None:
    samples[101] = GuestSample(pid=4711, uptime=5, mem=10, memhost=20, swap=3, disk=4)
    state = admin.get(f"{PATH}/status/current").data
    assert (state["status"], state["pid"], state["mem"], state["uptime"]) == ("running", 4711, 10, 5)
    assert (state["swap"], state["disk"], state["ha"]) == (3, 4, {"managed": 0})
    assert not {"memhost", "qmpstatus"} & state.keys()


def test_a_container_among_the_resources_of_the_cluster(admin: Wire) -> None:
    rows = {row["id"]: row for row in admin.get("/cluster/resources", type="vm").data}
    assert set(rows) == {"qemu/100", "lxc/101"}
    assert (rows["lxc/101"]["type"], rows["lxc/101"]["node"], rows["lxc/101"]["maxcpu"]) == ("lxc", NODE, 2)


def test_a_container_in_a_pool(admin: Wire) -> None:
    admin.post("/pools", poolid="p")
    admin.put("/pools/p", vms="101")
    (member,) = admin.get("/pools/p").data["members"]
    assert (member["id"], member["type"], member["vmid"]) == ("lxc/101", "lxc", 101)
    assert admin.get("/pools", poolid="p", type="lxc").status == 200


def test_who_sees_nothing_gets_an_empty_list(user: Any) -> None:
    wire = user(vms_100="VM.Audit")
    assert wire.get(LXC).data == []
    assert wire.get(f"{PATH}/config").status == 403


def test_configuration(admin: Wire) -> None:
    shown = admin.get(f"{PATH}/config").data
    assert len(shown.pop("digest")) == 40
    assert shown == OPTIONS | {"cores": 2, "memory": 1024, "swap": 256, "onboot": 1, "unprivileged": 1, "tty": 1}
    assert "tty" not in admin.get(f"{PATH}/config", current=1).data
    assert admin.get(f"{PATH}/config", snapshot="old").data["memory"] == 256
    assert admin.get(f"{PATH}/config", snapshot="none").reason == "snapshot 'none' does not exist"


def test_pending(admin: Wire) -> None:
    rows = {row["key"]: row for row in admin.get(f"{PATH}/pending").data}
    assert rows["tty"] == {"key": "tty", "pending": 1}
    assert rows["cores"] == {"key": "cores", "value": 2}
    assert rows["digest"]["value"]


def test_snapshots_that_it_came_with(admin: Wire) -> None:
    old, current = admin.get(f"{PATH}/snapshot").data
    assert (old["name"], old["description"]) == ("old", "before")
    assert (current["name"], current["running"], len(current["digest"])) == ("current", 0, 40)


def test_interfaces(admin: Wire, samples: dict[int, GuestSample]) -> None:
    assert admin.get(f"{PATH}/interfaces").data == []
    samples[101] = GuestSample(pid=1, uptime=1)
    loopback, card = admin.get(f"{PATH}/interfaces").data
    assert (loopback["name"], loopback["inet"], "inet6" in loopback) == ("lo", "127.0.0.1/8", False)
    assert (card["hwaddr"], card["hardware-address"]) == ("bc:24:11:00:00:01",) * 2
    assert (card["inet"], card["inet6"]) == ("10.0.0.5/24", "fd00::5/64")
    assert card["ip-addresses"][1] == {"ip-address": "fe80::1", "ip-address-type": "inet6", "prefix": 64}


def test_features_and_what_lies_below(admin: Wire) -> None:
    assert admin.get(f"{PATH}/feature", feature="clone").data == {"hasFeature": 0}
    assert admin.get(f"{PATH}/feature", feature="snapshot", snapname="no").status == 500
    assert admin.get(f"{PATH}/feature", feature="fly").status == 400
    assert {"subdir": "status"} in admin.get(PATH).data
    assert {"subdir": "shutdown"} in admin.get(f"{PATH}/status").data


@pytest.mark.parametrize(
    ("verb", "path"),
    [("GET", "/config"), ("GET", "/pending"), ("GET", "/status/current"), ("GET", "/interfaces"), ("PUT", "/config")]
    + [("POST", f"/status/{verb}") for verb in ("stop", "shutdown", "reboot", "suspend", "resume")]
    + [("DELETE", "")],
)
def test_one_kind_is_not_found_below_the_other(verb: str, path: str, admin: Wire) -> None:
    other = admin.send(verb, f"{LXC}/100{path}")
    assert (other.status, other.reason) == (500, f"Configuration file 'nodes/{NODE}/lxc/100.conf' does not exist")
    if path not in ("/interfaces",) and verb != "DELETE":
        same = admin.send(verb, f"/nodes/{NODE}/qemu/101{path}")
        assert (same.status, same.reason) == (
            500,
            f"Configuration file 'nodes/{NODE}/qemu-server/101.conf' does not exist",
        )


# Changing ------------------------------------------------------------------------------------------------------------


def test_a_change(runner: Starter, admin: Wire, services: Services) -> None:
    sent = {"memory": "2048", "delete": "mp0,tags", "revert": "tty", "digest": "0" * 40}
    answer = admin.put(f"{PATH}/config", **sent)
    assert (answer.status, answer.json["data"]) == (200, None)
    assert runner.started == [ChangeContainer(101, {"memory": "2048"}, ("mp0", "tags"), ("tty",), digest="0" * 40)]
    assert "+memory -mp0 -tags" in services.paths.audit_log.read_text()


def test_a_change_that_is_not_done_in_time_is_not_told_as_done(runner: Starter, admin: Wire) -> None:
    runner.status = None
    late = admin.put(f"{PATH}/config", memory="2048")
    assert late.status == 500
    assert str(UPID) in late.reason


@pytest.mark.parametrize(
    ("params", "fault"),
    [
        ({"unprivileged": "0"}, "unprivileged"),
        ({"delete": "rootfs"}, "delete"),
        ({"delete": "unprivileged"}, "unprivileged"),
        ({"delete": "bios"}, "delete"),
        ({"delete": "memory", "memory": "1024"}, "delete"),
        ({"rootfs": "local:8"}, "rootfs"),
        ({"mp1": "local:1,mp=/srv/"}, "mp1"),
        ({"net1": "name=eth0"}, "net1"),
        ({"password": "secret"}, "password"),
    ],
)
def test_changes_that_cannot_be(params: dict[str, str], fault: str, runner: Starter, admin: Wire) -> None:
    refused = admin.put(f"{PATH}/config", **params)
    assert (refused.status, list(refused.errors)) == (400, [fault]), refused
    assert runner.started == []


def test_what_a_change_needs(user: Any, runner: Starter) -> None:
    wire = user(vms="VM.Config.Memory VM.Audit")
    assert wire.put(f"{PATH}/config", memory="2048", swap="0").status == 200
    for params, privilege in (
        ({"cores": "1"}, "VM.Config.CPU"),
        ({"delete": "mp0"}, "VM.Config.Disk"),
        ({"hostname": "x"}, "VM.Config.Network"),
        ({"tags": "x"}, "VM.Config.Options"),
        ({"revert": "tty"}, "VM.Config.Options"),
        ({"features": "nesting=1"}, "VM.Allocate"),
    ):
        refused = wire.put(f"{PATH}/config", **params)
        assert (refused.status, refused.reason) == (403, f"Permission check failed (/vms/101, {privilege})")
    assert wire.put(f"{PATH}/config", delete="lock").reason == "only root can set 'lock' config"
    assert len(runner.started) == 1


def test_what_dropping_a_pending_change_needs(user: Any, services: Services, runner: Starter) -> None:
    found = read_guest(services.store, 101, kind="lxc", node=NODE)
    pending = {"features": "nesting=1", "mp1": "/srv,mp=/b"}
    config = replace(found.record.config, pending=pending)
    write_guest(services.store, replace(found.record, config=config), found.revision)
    wire = user(vms="VM.Allocate VM.Config.Disk")
    assert wire.put(f"{PATH}/config", revert="features").status == 200
    refused = wire.put(f"{PATH}/config", revert="mp1")
    assert (refused.status, refused.reason) == (403, "only root@pam can change a mount point of type bind ('mp1')")
    assert len(runner.started) == 1


def test_growing_and_moving(runner: Starter, admin: Wire) -> None:
    assert admin.put(f"{PATH}/resize", disk="rootfs", size="+2G").data == str(UPID)
    assert admin.post(f"{PATH}/move_volume", volume="mp0", storage="fast", delete="1", bwlimit="10").data == str(UPID)
    sent = {"target-vmid": "103", "target-volume": "mp3", "target-digest": "1" * 40}
    assert admin.post(f"{PATH}/move_volume", volume="mp0", **sent).data == str(UPID)
    assert runner.started == [
        ResizeMount(101, disk="rootfs", size="+2G"),
        MoveVolume(101, volume="mp0", storage="fast", delete=True, bwlimit=10),
        MoveVolume(101, volume="mp0", target_vmid=103, target_volume="mp3", target_digest="1" * 40),
    ]


def test_growing_and_moving_what_is_not_there(runner: Starter, admin: Wire) -> None:
    for answer, fault in (
        (admin.put(f"{PATH}/resize", disk="mp9", size="+2G"), "disk"),
        (admin.put(f"{PATH}/resize", disk="net0", size="+2G"), "disk"),
        (admin.put(f"{PATH}/resize", disk="rootfs", size="big"), "size"),
        (admin.post(f"{PATH}/move_volume", volume="mp0"), "storage"),
        (admin.post(f"{PATH}/move_volume", **{"volume": "mp0", "storage": "a1", "target-vmid": "103"}), "storage"),
        (admin.post(f"{PATH}/move_volume", **{"volume": "mp9", "target-vmid": "103"}), "volume"),
        (
            admin.post(f"{PATH}/move_volume", **{"volume": "mp0", "storage": "a1", "target-volume": "mp1"}),
            "target-vmid",
        ),
    ):
        assert (answer.status, list(answer.errors)) == (400, [fault]), answer
    assert runner.started == []


def test_giving_a_volume_away_takes_rights_on_both(user: Any, runner: Starter) -> None:
    wire = user(vms_101="VM.Config.Disk", storage_local="Datastore.AllocateSpace")
    refused = wire.post(f"{PATH}/move_volume", **{"volume": "mp0", "target-vmid": "103"})
    assert (refused.status, refused.reason) == (403, "Permission check failed (/vms/103, VM.Config.Disk)")
    refused = wire.post(f"{PATH}/move_volume", volume="mp0", storage="fast")
    assert (refused.status, refused.reason) == (403, "Permission check failed (/storage/fast, Datastore.AllocateSpace)")
    assert wire.put(f"{PATH}/resize", disk="mp0", size="+1G").status == 200
    assert len(runner.started) == 1


# Power and end -------------------------------------------------------------------------------------------------------


def test_power(runner: Starter, admin: Wire, samples: dict[int, GuestSample]) -> None:
    samples[101] = GuestSample(pid=1, uptime=1)
    verbs: dict[str, tuple[dict[str, str], Any]] = {
        "start": ({"debug": "1"}, StartContainer(101, debug=True)),
        "stop": ({}, StopContainer(101)),
        "shutdown": ({"timeout": "9", "forceStop": "1"}, ShutdownContainer(101, timeout=9, force=True)),
        "reboot": ({"timeout": "7"}, RebootContainer(101, timeout=7)),
        "suspend": ({}, SuspendContainer(101)),
        "resume": ({}, ResumeContainer(101)),
    }
    for verb, (params, _) in verbs.items():
        answer = admin.post(f"{PATH}/status/{verb}", **params)
        assert (answer.status, answer.data) == (200, str(UPID)), answer
    assert runner.started == [operation for _, operation in verbs.values()]


def test_power_of_what_does_not_run(admin: Wire) -> None:
    for verb in ("shutdown", "reboot", "suspend", "resume"):
        assert admin.post(f"{PATH}/status/{verb}").reason == "CT 101 not running"


def test_locks_are_roots_to_ignore(admin: Wire, stranger: Wire, runner: Starter) -> None:
    assert admin.post(f"{PATH}/status/start", skiplock="1").reason == "Only root may use this option."
    assert stranger.local().post(f"{PATH}/status/start", skiplock="1").status == 200
    assert runner.started == [StartContainer(101, skiplock=True)]


def test_destroying(runner: Starter, admin: Wire) -> None:
    sent = {"force": "1", "purge": "1", "destroy-unreferenced-disks": "1"}
    assert admin.delete(PATH, **sent).data == str(UPID)
    assert runner.started == [DestroyContainer(101, force=True, purge=True, unreferenced=True)]
