# SPDX-License-Identifier: AGPL-3.0-or-later
"""proxmoxer, the library that most scripts and Ansible use, against a real node."""

import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import pytest
from proxmoxer import AuthenticationError, ProxmoxAPI, ResourceException
from proxmoxer.tools import Files, Tasks
from tests.node.harness import BOOT_SECONDS, PASSWORD, Node, eventually

from orrery.demo.image import Prepared

POLL = 0.05
MIB = 1 << 20


def connected(node: Node, **how: Any) -> ProxmoxAPI:
    """The library's connection, with its own timeout of 5 s for every request."""
    return ProxmoxAPI("127.0.0.1", port=node.port, verify_ssl=str(node.paths.tls_cert), **how)


@pytest.fixture(scope="module")
def pve(node: Node) -> ProxmoxAPI:
    return connected(node, user="admin@pve", password=PASSWORD)


@pytest.fixture(scope="module")
def ended(pve: ProxmoxAPI) -> Callable[..., dict[str, Any]]:
    """Waits for a task by the library's own tool; its state."""

    def wait(upid: str, expected: str = "OK") -> dict[str, Any]:
        state = Tasks.blocking_status(pve, upid, timeout=60, polling_interval=POLL)
        assert state is not None, f"{upid} has not ended"
        assert state["exitstatus"] == expected, Tasks.decode_log(log(pve, upid))
        return state  # type: ignore[no-any-return]

    return wait


def log(pve: ProxmoxAPI, upid: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pve.nodes(Tasks.decode_upid(upid)["node"]).tasks(upid).log.get(limit=500)
    return found


@pytest.fixture
def refused() -> Callable[..., ResourceException]:
    """What a call raises."""

    def call(function: Callable[..., Any], *arguments: Any, **parameters: Any) -> ResourceException:
        with pytest.raises(ResourceException) as caught:
            function(*arguments, **parameters)
        return caught.value

    return call


# --- logging in


def test_log_in_by_password(node: Node) -> None:
    pve = connected(node, user="admin@pve", password=PASSWORD)
    assert re.fullmatch(r"\d+\.\d+\.\d+", pve.version.get()["version"])
    ticket, csrf = pve.get_tokens()
    assert ticket.startswith("PVE:admin@pve:")
    assert re.match(r"[0-9A-F]{8}:", csrf)


def test_a_ticket_is_renewed_by_itself(node: Node) -> None:
    pve = connected(node, user="admin@pve", password=PASSWORD)
    pve._backend.auth.renew_age = 0
    before = pve.get_tokens()[0]
    eventually(lambda: pve.version.get() and pve.get_tokens()[0] != before, 5, "a new ticket")
    pve.access.users.get()


def test_a_wrong_password_is_refused(node: Node) -> None:
    with pytest.raises(AuthenticationError, match="code: 401"):
        connected(node, user="admin@pve", password="wrong password")


def test_log_in_by_token(pve: ProxmoxAPI, node: Node, refused: Callable[..., ResourceException]) -> None:
    made = pve.access.users("admin@pve").token("proxmoxer").post(privsep=0, comment="for a test")
    assert made["full-tokenid"] == "admin@pve!proxmoxer"
    how = {"user": "admin@pve", "token_name": "proxmoxer", "token_value": made["value"]}
    by_token = connected(node, **how)
    assert by_token.nodes.get()[0]["node"] == node.name
    by_token.pools.post(poolid="by-token")
    by_token.pools("by-token").delete()
    error = refused(by_token.access.password.put, userid="admin@pve", password="another password")
    assert (error.status_code, error.content.split(" (")[0]) == (403, "Permission check failed")
    again = refused(pve.access.users("admin@pve").token("proxmoxer").post)
    assert (again.status_code, again.errors) == (400, {"tokenid": "Token already exists."})
    assert {row["tokenid"] for row in pve.access.users("admin@pve").token.get()} >= {"proxmoxer"}
    pve.access.users("admin@pve").token("proxmoxer").put(comment="changed", expire=0)
    assert pve.access.users("admin@pve").token("proxmoxer").get()["comment"] == "changed"
    pve.access.users("admin@pve").token("proxmoxer").delete()
    assert refused(by_token.version.get).status_code == 401
    gone = refused(pve.access.users("admin@pve").token("proxmoxer").get)
    assert "no such token 'proxmoxer' for user 'admin@pve'" in gone.content


def test_a_separated_token_has_only_what_it_was_given(pve: ProxmoxAPI, node: Node) -> None:
    value = pve.access.users("admin@pve").token("apart").post(privsep=1)["value"]
    by_token = connected(node, user="admin@pve", token_name="apart", token_value=value)
    assert by_token.pools.get() == []
    assert by_token.access.permissions.get() == {}
    pve.access.acl.put(path="/", tokens="admin@pve!apart", roles="PVEAuditor")
    assert by_token.access.permissions.get(path="/vms")["/vms"]["VM.Audit"] == 1
    pve.access.users("admin@pve").token("apart").delete()


# --- users, groups, pools, rights


def test_users_and_groups(pve: ProxmoxAPI, node: Node, refused: Callable[..., ResourceException]) -> None:
    pve.access.groups.post(groupid="staff", comment="people")
    pve.access.users.post(userid="anna@pve", password="anna's password", groups="staff", email="anna@example.net")
    assert pve.access.groups("staff").get()["members"] == ["anna@pve"]
    assert pve.access.users("anna@pve").get()["groups"] == ["staff"]
    pve.access.users("anna@pve").put(firstname="Anna")
    row = next(row for row in pve.access.users.get(full=1) if row["userid"] == "anna@pve")
    assert (row["firstname"], row["email"], row["enable"]) == ("Anna", "anna@example.net", 1)
    assert "already exists" in refused(pve.access.users.post, userid="anna@pve").content
    anna = connected(node, user="anna@pve", password="anna's password")
    assert refused(anna.access.users.post, userid="other@pve").status_code == 403
    anna.access.password.put(userid="anna@pve", password="a better one", **{"confirmation-password": "anna's password"})
    connected(node, user="anna@pve", password="a better one")
    pve.access.users("anna@pve").put(enable=0)
    with pytest.raises(AuthenticationError):
        connected(node, user="anna@pve", password="a better one")
    pve.access.users("anna@pve").delete()
    pve.access.groups("staff").delete()
    assert "no such user ('anna@pve')" in refused(pve.access.users("anna@pve").get).content
    assert "'staff' does not exist" in refused(pve.access.groups("staff").get).content


def test_roles_and_rights(pve: ProxmoxAPI, refused: Callable[..., ResourceException]) -> None:
    pve.access.roles.post(roleid="Operator", privs="VM.PowerMgmt,VM.Audit")
    pve.access.users.post(userid="ben@pve")
    pve.access.acl.put(path="/vms/100", users="ben@pve", roles="Operator", propagate=0)
    rule = next(rule for rule in pve.access.acl.get() if rule["ugid"] == "ben@pve")
    wanted = {"path": "/vms/100", "type": "user", "ugid": "ben@pve", "roleid": "Operator", "propagate": 0}
    assert rule == wanted
    assert pve.access.permissions.get(userid="ben@pve", path="/vms/100") == {
        "/vms/100": {"VM.Audit": 0, "VM.PowerMgmt": 0}
    }
    pve.access.roles("Operator").put(privs="VM.Console", append=1)
    assert set(pve.access.roles("Operator").get()) == {"VM.PowerMgmt", "VM.Audit", "VM.Console"}
    pve.access.acl.put(path="/vms/100", users="ben@pve", roles="Operator", delete=1)
    assert all(rule["ugid"] != "ben@pve" for rule in pve.access.acl.get())
    pve.access.users("ben@pve").delete()
    pve.access.roles("Operator").delete()
    error = refused(pve.access.roles.post, roleid="PVESomething", privs="VM.Audit")
    assert (error.status_code, list(error.errors)) == (400, ["roleid"])


def test_pools(pve: ProxmoxAPI, node: Node, refused: Callable[..., ResourceException]) -> None:
    vmid = node.next_vmid()
    node.guest(vmid=vmid)
    pve.pools.post(poolid="web", comment="first")
    pve.pools.put(poolid="web", vms=vmid, storage="local")
    found = pve.pools.get(poolid="web")
    assert [member["id"] for member in found[0]["members"]] == [f"qemu/{vmid}", f"storage/{node.name}/local"]
    assert next(row for row in pve.cluster.resources.get(type="vm") if row["vmid"] == vmid)["pool"] == "web"
    assert "not empty" in refused(pve.pools("web").delete).content
    pve.pools("web").put(vms=vmid, storage="local", delete=1)
    pve.pools("web").put(comment="second")
    assert pve.pools("web").get() == {"comment": "second", "members": []}
    pve.pools.delete(poolid="web")
    assert "'web' does not exist" in refused(pve.pools("web").get).content
    node.api.wait(pve.nodes(node.name).qemu(vmid).delete())


# --- files


@pytest.fixture
def iso(tmp_path: Path) -> Path:
    """Something that passes for an optical medium; larger than what the library sends from memory."""
    file = tmp_path / "medium.iso"
    content = bytearray(11 * MIB)
    content[32768:32774] = b"\x01CD001"
    file.write_bytes(content)
    return file


def test_upload_of_a_large_file(pve: ProxmoxAPI, node: Node, iso: Path, ended: Callable[..., Any]) -> None:
    storage = pve.nodes(node.name).storage("local")
    with iso.open("rb") as stream:
        upid = storage.upload.post(content="iso", filename=stream)
    assert ended(upid)["type"] == "imgcopy"
    volume = storage.content("local:iso/medium.iso").get()
    assert (volume["size"], volume["format"]) == (11 * MIB, "iso")
    listed = [row["volid"] for row in storage.content.get(content="iso")]
    assert "local:iso/medium.iso" in listed
    upid = storage.content("local:iso/medium.iso").delete()
    if upid is not None:
        ended(upid)
    assert "local:iso/medium.iso" not in [row["volid"] for row in storage.content.get(content="iso")]


def test_upload_by_the_librarys_tool(pve: ProxmoxAPI, node: Node, iso: Path) -> None:
    state = Files(pve, node.name, "local").upload_local_file_to_storage(str(iso))
    assert state is not None
    assert state["exitstatus"] == "OK"
    assert any("sha512" in line["t"] for line in log(pve, state["upid"]))
    pve.nodes(node.name).storage("local").content("iso/medium.iso").delete()


def test_a_small_upload_goes_another_way(
    pve: ProxmoxAPI, node: Node, refused: Callable[..., ResourceException]
) -> None:
    storage = pve.nodes(node.name).storage("local")

    class Named(io.BytesIO):
        name = "/some/where/small.txt"

    error = refused(storage.upload.post, content="iso", filename=Named(b"no medium"))
    assert (error.status_code, error.errors) == (400, {"filename": "wrong file extension"})


def test_download_tool_is_refused_what_is_not_there(pve: ProxmoxAPI, node: Node) -> None:
    storage = pve.nodes(node.name).storage("local")
    url = "http://127.0.0.1:9/nothing.iso"
    upid = storage("download-url").post(url=url, content="iso", filename="nothing.iso")
    state = Tasks.blocking_status(pve, upid, timeout=60, polling_interval=POLL)
    assert state["exitstatus"] not in ("OK", None)
    assert Tasks.decode_log(log(pve, upid)).splitlines()[-1].startswith("TASK ERROR: ")


# --- a machine from its making to its end


@pytest.fixture(scope="module")
def imported(
    pve: ProxmoxAPI,
    node: Node,
    demo_image: Prepared,
    ended: Callable[..., Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[str]:
    """The demonstration guest's disk, uploaded by the library."""
    storage = pve.nodes(node.name).storage("local")
    file = tmp_path_factory.mktemp("upload") / "proxmoxer.qcow2"
    file.symlink_to(demo_image.image)
    with file.open("rb") as stream:
        ended(storage.upload.post(content="import", filename=stream))
    yield "local:import/proxmoxer.qcow2"
    storage.content("local:import/proxmoxer.qcow2").delete()


@pytest.mark.guest
def test_a_machine_from_its_making_to_its_end(
    pve: ProxmoxAPI, node: Node, imported: str, ended: Callable[..., Any], refused: Callable[..., ResourceException]
) -> None:
    here = pve.nodes(node.name)
    vmid = node.next_vmid()
    disk = f"local:0,import-from={imported}"
    make = {"vmid": vmid, "name": "made", "memory": 160, "virtio0": disk, "ostype": "l26", "serial0": "socket"}
    state = ended(here.qemu.post(**make, net0="virtio,bridge=vmbr0", agent="enabled=1"))
    assert (state["type"], state["id"], state["user"]) == ("qmcreate", str(vmid), "admin@pve")
    machine = here.qemu(vmid)

    config = machine.config.get()
    assert re.fullmatch(r"virtio=BC:24:11(:[0-9A-F]{2}){3},bridge=vmbr0", config["net0"])
    assert config["virtio0"].startswith(f"local:{vmid}/vm-{vmid}-disk-0.")
    assert machine.config.put(cores=2, description="two\nlines", tags="b;a", digest=config["digest"]) is None
    stale = refused(machine.config.put, cores=1, digest=config["digest"])
    assert "detected modified configuration" in stale.content
    ended(machine.config.post(balloon=128, onboot=0))
    changed = machine.config.get()
    assert (changed["cores"], changed["description"].rstrip("\n"), changed["tags"]) == (2, "two\nlines", "a;b")

    assert "already exists" in refused(here.qemu.post, vmid=vmid).content
    assert refused(pve.cluster.nextid.get, vmid=vmid).errors == {"vmid": f"VM {vmid} already exists"}
    assert f"VM {vmid} not running" in refused(machine.status.shutdown.post).content

    ended(machine.status.start.post())
    assert f"VM {vmid} already running" in refused(machine.status.start.post).content
    assert machine.status.current.get()["status"] == "running"
    assert "running" in refused(machine.delete).content
    address = eventually(lambda: first_address(machine), BOOT_SECONDS, "an address")
    assert address.count(".") == 3

    before = machine.config.get()["virtio0"]
    ended(machine.resize.put(disk="virtio0", size="+64M"))
    assert machine.config.get()["virtio0"] != before
    assert refused(machine.resize.put, disk="virtio0", size="1M").status_code in (400, 500)
    pid = machine.agent("exec").post(command="cat /sys/block/vda/size")["pid"]
    told = eventually(lambda: (found := machine.agent("exec-status").get(pid=pid))["exited"] and found, 20)
    size = machine.config.get()["virtio0"].rpartition("size=")[2].split(",")[0]
    assert size == f"{int(told['out-data']) * 512 // MIB}M"

    ended(machine.status.stop.post())
    assert machine.status.current.get()["status"] == "stopped"
    ended(machine.delete(purge=1))
    gone = refused(machine.config.get)
    assert gone.status_code == 500
    assert f"Configuration file 'nodes/{node.name}/qemu-server/{vmid}.conf' does not exist" in gone.content
    assert here.storage("local").content.get(vmid=vmid) == []


def first_address(machine: Any) -> str | None:
    """The first IPv4 address that is not the loopback's, as soon as the agent tells one."""
    try:
        cards = machine.agent("network-get-interfaces").get()["result"]
    except ResourceException as error:
        if "agent" in error.content.lower():
            return None  # it is not up yet
        raise
    for card in cards:
        for each in card.get("ip-addresses", ()):
            if each["ip-address-type"] == "ipv4" and not each["ip-address"].startswith("127."):
                return str(each["ip-address"])
    return None


# --- errors as the library shows them


def test_cloud_init(pve: ProxmoxAPI, node: Node, ended: Callable[..., Any]) -> None:
    """What a machine is told, in the words of the library's examples."""
    key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHz1l2Dc5H1OIA0+IgkQCY4ppgSQf8Mk0l2S4l3JkfXm anna+1@laptop"
    vmid = node.next_vmid()
    told = {"ciuser": "anna", "cipassword": "secret", "ipconfig0": "ip=192.0.2.5/24,gw=192.0.2.1"}
    machines = pve.nodes(node.name).qemu
    ended(machines.post(vmid=vmid, memory=64, ide2="local:cloudinit", sshkeys=quote(key, safe=""), **told))
    machine = machines(vmid)
    config = machine.config.get()
    assert unquote(config["sshkeys"]) == key
    assert config["cipassword"] == "**********"
    machine.config.put(ciuser="bert")
    machine.cloudinit.put()
    assert {row["key"]: row.get("value") for row in machine.cloudinit.get()}["ciuser"] == "bert"
    dumped = machine.cloudinit.dump.get(type="user")
    assert "user: bert" in dumped
    assert key in dumped
    assert "secret" not in dumped
    ended(machine.delete())


def test_errors(pve: ProxmoxAPI, node: Node, refused: Callable[..., ResourceException]) -> None:
    here = pve.nodes(node.name)
    missing = refused(here.qemu.post, name="x")
    assert (missing.status_code, missing.content) == (400, "Parameter verification failed.")
    assert missing.errors == {"vmid": "property is missing and it is not optional"}
    wrong = refused(here.qemu.post, vmid="abc", memory="lots", nonsense=1)
    assert set(wrong.errors) == {"vmid", "memory", "nonsense"}
    unknown = refused(here.no.such.thing.get)
    assert (unknown.status_code, unknown.content) == (
        501,
        f"Method 'GET /nodes/{node.name}/no/such/thing' not implemented",
    )
    elsewhere = refused(pve.nodes("elsewhere").qemu.get)
    assert elsewhere.status_code == 500
    assert elsewhere.content.startswith("hostname lookup 'elsewhere' failed")
    no_task = f"UPID:{node.name}:00000001:00000001:00000001:qmstart:100:admin@pve:"
    assert refused(here.tasks(no_task).status.get).errors == {"upid": "no such task"}
    storage = refused(here.storage("nowhere").status.get)
    assert "storage 'nowhere' does not exist" in storage.content


def test_lists_of_tasks(pve: ProxmoxAPI, node: Node, ended: Callable[..., Any]) -> None:
    vmid = node.next_vmid()
    upid = pve.nodes(node.name).qemu.post(vmid=vmid)
    ended(upid)
    assert upid in [row["upid"] for row in pve.nodes(node.name).tasks.get(vmid=vmid, source="all")]
    assert upid in [row["upid"] for row in pve.cluster.tasks.get()]
    lines = Tasks.decode_log(log(pve, upid)).splitlines()
    assert lines[-1] == "TASK OK"
    decoded = Tasks.decode_upid(upid)
    assert (decoded["node"], decoded["type"], decoded["id"], decoded["user"]) == (
        node.name,
        "qmcreate",
        str(vmid),
        "admin@pve",
    )
    ended(pve.nodes(node.name).qemu(vmid).delete())
