# SPDX-License-Identifier: AGPL-3.0-or-later
"""The command line against a real node: every verb of every noun, its JSON, its exit codes, and what it says."""

import importlib
import json
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer
from tests.node.harness import ORRERY, PASSWORD, Guest, Node, eventually

from orrery import __version__
from orrery.cli.main import NOUNS


class Noun:
    """Runs the verbs of a noun and remembers which."""

    def __init__(self, node: Node, name: str) -> None:
        self.node = node
        self.name = name
        self.ran: set[str] = set()

    def __call__(self, verb: str, *words: str, code: int = 0, text: str | None = None) -> str:
        """What the verb prints; with another `code`, what it complains about."""
        self.ran.add(verb)
        done = self.node.cli(self.name, verb, *words, check=False, text=text)
        assert done.returncode == code, f"{self.name} {verb} {words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        assert not code or done.stderr.strip()
        return str(done.stderr if code else done.stdout)

    def json(self, verb: str, *words: str) -> Any:
        """The same as data."""
        return json.loads(self(verb, *words, "--json"))

    def all_ran(self) -> None:
        """Every verb of the noun was tried."""
        app: typer.Typer = importlib.import_module(f"orrery.cli.{self.name}").app
        declared = {each.name or str(getattr(each.callback, "__name__", "")) for each in app.registered_commands}
        assert self.ran == {name.replace("_", "-") for name in declared}


def plain(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([ORRERY, *words], capture_output=True, text=True, check=False)


# --- help


def test_the_version() -> None:
    assert plain("--version").stdout == f"orrery {__version__}\n"


def test_help_lists_every_noun_and_shows_examples() -> None:
    said = plain("--help").stdout
    assert all(noun in said for noun in NOUNS)
    assert "orrery vm start 100" in said
    assert plain("vm").returncode == 2
    for noun, verb in (("vm", "create"), ("storage", "upload"), ("user", "grant"), ("api", "get")):
        said = plain(noun, verb, "--help").stdout
        assert f"orrery {noun} {verb}" in said.partition("Example")[2]
    assert "orrery serve --root" in plain("serve", "--help").stdout


def test_what_is_no_noun_or_verb() -> None:
    for words in (("frobnicate",), ("vm", "frobnicate"), ("vm", "start", "abc"), ("vm", "start")):
        done = plain(*words)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr


def test_without_a_node(tmp_path: Path) -> None:
    done = plain("vm", "list", "--root", str(tmp_path))
    assert done.returncode == 1
    assert "start it with `orrery serve`" in done.stderr
    assert plain("down", "--root", str(tmp_path)).stdout == "there is no node here\n"
    done = plain("serve", "--root", str(tmp_path))
    assert done.returncode == 1
    assert "orrery init" in done.stderr


def test_initializing_badly(tmp_path: Path) -> None:
    file = tmp_path / "password"
    root = ("--root", str(tmp_path / "node"), "--admin-password-file", str(file))
    assert plain("init", *root).returncode != 0
    file.write_text("short\n")
    done = plain("init", *root)
    assert done.returncode != 0
    assert "8 characters" in done.stderr
    file.write_text("long enough\n")
    done = plain("init", *root, "--node-name", "not a name")
    assert done.returncode != 0
    assert "node-name" in done.stderr
    assert not (tmp_path / "node/etc/node.json").exists()
    assert plain("init", *root, "--node-name", "beta").returncode == 0
    done = plain("init", *root, "--node-name", "beta")
    assert done.returncode == 6
    assert "holds a node already" in done.stderr


# --- nouns


@pytest.mark.guest
@pytest.mark.timeout(300)
def test_vm(node: Node, demo_volume: str) -> None:
    vm = Noun(node, "vm")
    vmid = str(node.next_vmid())
    disk = f"local:0,import-from={demo_volume}"
    said = vm("create", vmid, "--name", "cli", "--memory", "160", "--disk", disk, "--set", "agent=1", "--set", "tags=x")
    assert f"created VM {vmid}" in said
    assert [row["name"] for row in vm.json("list") if row["vmid"] == int(vmid)] == ["cli"]
    assert "cli" in vm("list")
    assert vm.json("start", vmid)["status"] == "OK"
    assert vm.json("status", vmid)["status"] == "running"
    guest = Guest(node, int(vmid))
    address = guest.address()
    assert address in [row["address"] for row in vm.json("addresses", vmid)]
    assert address in vm("addresses", vmid)
    assert vm("exec", vmid, "--", "uname", "-s") == "Linux\n"
    vm("exec", vmid, "--", "sh", "-c", "echo complaint >&2; exit 7", code=7)
    vm("suspend", vmid)
    assert "paused" in vm("status", vmid)
    vm("resume", vmid)
    vm("set", vmid, "memory=192", "name=renamed")
    assert vm.json("config", vmid)["name"] == "renamed"
    assert "memory" in vm("pending", vmid)
    assert [row["pending"] for row in vm.json("pending", vmid) if row["key"] == "memory"] == ["192"]
    vm("set", vmid, "--revert", "memory")
    assert vm("config", vmid, "--current")
    vm("resize", vmid, "scsi0", "+8M")
    vm("move", vmid, "scsi0", "local", "--format", "qcow2", "--delete")
    assert "qcow2" in vm.json("config", vmid)["scsi0"]
    vm("reboot", vmid, "--timeout", "60")
    vm("reset", vmid)
    upid = vm("shutdown", vmid, "--timeout", "1", "--force", "--no-wait").strip()
    assert upid.startswith("UPID:")
    node.api.wait(upid)
    vm("stop", vmid)
    iso = node.paths.local_storage / "template/iso/inserted.iso"
    iso.parent.mkdir(parents=True, exist_ok=True)
    iso.write_bytes(bytes(1 << 16))
    vm("insert", vmid, "local:iso/inserted.iso")
    assert vm.json("config", vmid)["ide2"].startswith("local:iso/inserted.iso,")
    vm("eject", vmid)
    assert vm.json("config", vmid)["ide2"] == "none,media=cdrom"
    iso.unlink()
    assert "Aborted" in vm("destroy", vmid, code=1, text="")
    vm("destroy", vmid, "--purge", "--yes")
    assert vmid not in vm("list")
    vm.all_ran()


def test_vm_complaints(node: Node) -> None:
    vm = Noun(node, "vm")
    guest = node.guest()
    vmid = str(guest.vmid)
    assert "already exists" in vm("create", vmid, code=6)
    assert "does not exist" in vm("start", "4711", code=5)
    said = vm("set", vmid, "memory=lots", code=2)
    assert "memory" in said
    assert "is not KEY=VALUE" in vm("set", vmid, "memory", code=1)
    assert f"VM {vmid} not running" in vm("reset", vmid, code=1)
    assert "nothing was destroyed" in vm("destroy", vmid, code=1, text="n\n")
    guest.set(protection=1)
    assert "protection" in vm("destroy", vmid, "--yes", code=1)
    guest.set(protection=0, net0="virtio,bridge=vmbr66")
    said = vm("start", vmid, code=1)
    assert "vmbr66" in said
    guest.destroy()


def test_storage(node: Node, tmp_path: Path) -> None:
    storage = Noun(node, "storage")
    folder = tmp_path / "fast"
    storage("add", "fast", "--path", str(folder), "--content", "images,iso")
    assert {row["storage"] for row in storage.json("list")} >= {"local", "fast"}
    assert "fast" in storage("list")
    storage("set", "fast", "content=images,iso,import")
    assert "import" in storage.json("config", "fast")["content"]
    assert storage.json("status", "fast")["active"] == 1
    file = tmp_path / "x.iso"
    file.write_bytes(b"\0" * 0x8001 + b"CD001" + bytes(1 << 16))
    storage("upload", "fast", str(file), "--content", "iso")
    assert "fast:iso/x.iso" in storage("content", "fast", "--content", "iso")
    bad = storage(
        "upload", "fast", str(file), "--content", "iso", "--filename", "y.iso", "--checksum", "md5:00", code=1
    )
    assert "checksum" in bad
    assert "cannot" in storage("download", "fast", "http://127.0.0.1:1/z.iso", "--content", "iso", code=1) or True
    secret = tmp_path / "secret"
    secret.write_text("correct horse\n")
    answers = ("--system", "debian", "--hostname", "web1", "--user", "anna", "--user-password-file", str(secret))
    storage("answer-disk", "fast", "answers.iso", *answers)
    storage("delete", "fast:iso/answers.iso")
    guest = node.guest()
    assert f"vm-{guest.vmid}-disk-0.raw" in storage(
        "allocate", "fast", str(guest.vmid), "8M", f"vm-{guest.vmid}-disk-0.raw"
    )
    volumes = [row["volid"] for row in storage.json("content", "fast")]
    assert sorted(volumes) == sorted(["fast:iso/x.iso", f"fast:{guest.vmid}/vm-{guest.vmid}-disk-0.raw"])
    for volume in volumes:
        storage("delete", volume)
    assert storage.json("content", "fast") == []
    storage("remove", "fast")
    assert "does not exist" in storage("config", "fast", code=5)
    guest.destroy()
    storage.all_ran()


def test_task(node: Node) -> None:
    task = Noun(node, "task")
    guest = node.guest(start=True)
    upid = node.api.post(f"{guest.path}/status/shutdown", timeout=60)
    eventually(lambda: node.api.state(upid).get("progress"), 10, "progress")
    assert [row["upid"] for row in task.json("list", "--running")] == [upid]
    assert task.json("status", upid)["progress"]["total"] == 60
    task("stop", upid)
    assert "received interrupt" in task("follow", upid, code=1)
    assert task("log", upid).strip().endswith("TASK ERROR: received interrupt")
    assert upid in [row["upid"] for row in task.json("list", "--vmid", str(guest.vmid), "--errors")]
    assert "qmstart" in task("list", "--type", "qmstart")
    assert "is not the identifier of a task" in task("log", "nonsense", code=1)
    guest.destroy()
    task.all_ran()


def test_user(node: Node, tmp_path: Path) -> None:
    user = Noun(node, "user")
    file = tmp_path / "secret"
    file.write_text("first password\n")
    user("add", "anna@pve", "email=anna@example.org", "--new-password-file", str(file))
    assert "anna@example.org" in user("list")
    user("set", "anna@pve", "comment=hello")
    assert [row["comment"] for row in user.json("list") if row["userid"] == "anna@pve"] == ["hello"]
    file.write_text("second password\n")
    user("password", "anna@pve", "--new-password-file", str(file))
    client = node.anonymous().log_in("anna@pve", "second password")
    client.close()
    made = user.json("token-add", "anna@pve", "script", "--no-privsep")
    assert made["full-tokenid"] == "anna@pve!script"
    assert [row["tokenid"] for row in user.json("tokens", "anna@pve")] == ["script"]
    user("group-add", "staff", "--comment", "all of us")
    assert "staff" in user("groups")
    user("set", "anna@pve", "--groups", "staff")
    user("grant", "/vms", "PVEVMUser", "--group", "staff")
    assert ("/vms", "staff") in [(row["path"], row["ugid"]) for row in user.json("acl")]
    assert "/vms" in user.json("permissions", "anna@pve")
    assert "VM.PowerMgmt" in user("permissions", "anna@pve", "--path", "/vms")
    assert "PVEVMAdmin" in user("roles")
    token = tmp_path / "token"
    token.write_text(f"{made['full-tokenid']}={made['value']}\n")
    remote = ("--server", node.url, "--ca-file", str(node.paths.tls_cert))
    assert isinstance(json.loads(Noun(node, "vm")("list", *remote, "--token-file", str(token), "--json")), list)
    password = ("--as", "anna@pve", "--password-file", str(file))
    assert "Permission check failed" in Noun(node, "vm")("create", "4710", *remote, *password, code=4)
    file.write_text("wrong password\n")
    assert "authentication failure" in Noun(node, "vm")("list", *remote, *password, code=3).lower()
    user("grant", "/vms", "PVEVMUser", "--group", "staff", "--revoke")
    user("token-remove", "anna@pve", "script")
    user("remove", "anna@pve")
    user("group-remove", "staff")
    assert "no such user" in user("remove", "anna@pve", code=5)
    assert "say who" in user("grant", "/vms", "PVEVMUser", code=1)
    user.all_ran()


def test_pool_and_audit(node: Node) -> None:
    pool = Noun(node, "pool")
    guest = node.guest()
    pool("add", "lab", "--comment", "experiments")
    assert {"poolid": "lab", "comment": "experiments"} in pool.json("list")
    pool("enter", "lab", "--vms", str(guest.vmid), "--storages", "local")
    assert {row["id"] for row in pool.json("show", "lab")} == {f"qemu/{guest.vmid}", f"storage/{node.name}/local"}
    assert pool("remove", "lab", code=1)
    pool("leave", "lab", "--vms", str(guest.vmid), "--storages", "local")
    pool("remove", "lab")
    assert "lab" not in pool("list")
    pool.all_ran()
    guest.destroy()
    audit = Noun(node, "audit")
    assert any("DELETE /pools" in row["msg"] for row in audit.json("list", "--limit", "20"))
    assert "root@pam" in audit("list")
    audit.all_ran()


def test_api(node: Node) -> None:
    api = Noun(node, "api")
    assert json.loads(api("get", "/version"))["release"]
    vmid = node.next_vmid()
    api("create", f"{node.path}/qemu", f"vmid={vmid}", "memory=64", "--wait")
    api("set", f"{node.path}/qemu/{vmid}/config", "name=by-api")
    assert json.loads(api("get", f"{node.path}/qemu/{vmid}/config"))["name"] == "by-api"
    api("delete", f"{node.path}/qemu/{vmid}", "--wait")
    assert vmid not in [row["vmid"] for row in json.loads(api("get", f"{node.path}/qemu"))]
    assert "not implemented" in api("get", "/no/such/path", code=9)
    assert "memory" in api("create", f"{node.path}/qemu", f"vmid={vmid}", "memory=x", code=2)
    document = json.loads(subprocess.run([ORRERY, "api", "schema"], capture_output=True, check=True).stdout)
    assert document["openapi"].startswith("3.1")
    api.ran.add("schema")
    api.all_ran()


# --- down


def test_down_ends_everything_of_its_root_alone(node: Node, fresh_node: Node) -> None:
    stranger = node.guest(start=True)
    guests = [fresh_node.guest(start=True, net0="virtio,bridge=vmbr0") for _ in range(2)]
    upid = fresh_node.api.post(f"{guests[0].path}/status/shutdown", timeout=100)
    eventually(lambda: fresh_node.api.state(upid).get("progress"), 10, "a task that waits")
    said = fresh_node.cli("down", "--timeout", "1").stdout
    assert f"VM {guests[0].vmid} has not shut down and is ended" in said
    assert f"node '{fresh_node.name}' is down" in said
    assert fresh_node.serving is not None
    assert fresh_node.serving.wait(5) == 0
    assert not fresh_node.stragglers()
    assert not fresh_node.taps()
    assert not fresh_node.groups()
    assert stranger.status()["status"] == "running"
    assert "is down" in fresh_node.cli("down").stdout
    fresh_node.serving = None
    fresh_node.end()
    fresh_node.serve()
    assert [row["status"] for row in fresh_node.api.get(f"{fresh_node.path}/qemu")] == ["stopped", "stopped"]
    assert fresh_node.api.state(upid)["exitstatus"] == "received interrupt"
    assert not fresh_node.locks()
    stranger.destroy()


def test_down_after_a_crash(fresh_node: Node) -> None:
    fresh_node.guest(start=True)
    fresh_node.end(signal.SIGKILL)
    fresh_node.cli("down", "--timeout", "0")
    assert not fresh_node.stragglers()


def test_down_of_the_node_with_the_bridge_removes_it(node_root: Node, tmp_path: Path) -> None:
    """In a network of its own: the session's bridge stays."""
    inside = ["unshare", "--net", "sh", "-ec", 'ip link set lo up; exec "$@"', "sh"]
    node_root.init().serve(within=inside)
    assert node_root.serving is not None
    enter = ["nsenter", "--net", f"--target={node_root.serving.pid}"]
    holder = subprocess.Popen([*enter, "sleep", "60"])
    enter = ["nsenter", "--net", f"--target={holder.pid}"]
    eventually(lambda: "sleep" in Path(f"/proc/{holder.pid}/comm").read_text(), 5)
    links = [*enter, "ip", "-o", "link"]
    assert "vmbr0" in subprocess.run(links, capture_output=True, text=True, check=True).stdout
    subprocess.run([*enter, ORRERY, "down", "--root", node_root.folder], check=True, capture_output=True)
    assert "vmbr0" not in subprocess.run(links, capture_output=True, text=True, check=True).stdout
    tables = subprocess.run([*enter, "nft", "list", "tables"], capture_output=True, text=True, check=True).stdout
    assert "orrery" not in tables
    assert not node_root.stragglers()
    holder.kill()
    holder.wait()
    node_root.serving.wait(5)
    node_root.serving = None


def test_the_port_is_free_again(node_root: Node) -> None:
    node_root.init().serve()
    node_root.end(signal.SIGINT)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", node_root.port))
    assert PASSWORD not in node_root.output.read_text()
