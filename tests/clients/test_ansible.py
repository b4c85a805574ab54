# SPDX-License-Identifier: AGPL-3.0-or-later
"""Ansible's collection community.proxmox, played against a real node; what claims to change nothing the second time, is
played twice.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.node.harness import PASSWORD, Node, eventually

from orrery.demo.image import Prepared

PLAYBOOKS = Path(__file__).with_name("playbooks")
PROGRAMS = Path(sys.executable).parent
PLAY_SECONDS = 180
MIB = 1 << 20

pytestmark = pytest.mark.timeout(300)

Play = Callable[..., dict[str, dict[str, Any]]]


@pytest.fixture(scope="module")
def surroundings(node: Node, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of Ansible's programs: all that they write stays in a folder of the test."""
    home = tmp_path_factory.mktemp("ansible")
    (home / "ansible.cfg").write_text("[defaults]\n")
    value = node.root.post("/access/users/admin@pve/token/ansible", privsep=0)["value"]
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE_", "PROXMOX_"))},
        "ANSIBLE_CONFIG": str(home / "ansible.cfg"),
        "ANSIBLE_HOME": str(home),
        "ANSIBLE_LOCAL_TEMP": str(home / "local"),
        "ANSIBLE_REMOTE_TEMP": str(home / "remote"),
        "ANSIBLE_LOCALHOST_WARNING": "0",
        "ANSIBLE_INVENTORY_UNPARSED_WARNING": "0",
        "ANSIBLE_PYTHON_INTERPRETER": sys.executable,
        "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json",
        "ANSIBLE_RETRY_FILES_ENABLED": "0",
        "ANSIBLE_NOCOLOR": "1",
        "HOME": str(home),
        "LC_ALL": "C.UTF-8",
        "PROXMOX_HOST": "127.0.0.1",
        "PROXMOX_PORT": str(node.port),
        "PROXMOX_USER": "admin@pve",
        "PROXMOX_TOKEN_ID": "ansible",
        "PROXMOX_TOKEN_SECRET": value,
        "PROXMOX_VALIDATE_CERTS": "true",
        "REQUESTS_CA_BUNDLE": str(node.paths.tls_cert),
    }


@pytest.fixture(scope="module")
def play(node: Node, surroundings: dict[str, str]) -> Play:
    """Plays a playbook; what each of its tasks told, by name."""

    def run(playbook: str, *, by_password: bool = False, **variables: Any) -> dict[str, dict[str, Any]]:
        environment = dict(surroundings)
        if by_password:
            del environment["PROXMOX_TOKEN_ID"], environment["PROXMOX_TOKEN_SECRET"]
            environment["PROXMOX_PASSWORD"] = PASSWORD
        extra = json.dumps({"node": node.name, **variables})
        done = subprocess.run(
            [PROGRAMS / "ansible-playbook", "-i", "localhost,", "-c", "local", "-e", extra, PLAYBOOKS / playbook],
            env=environment,
            capture_output=True,
            text=True,
            timeout=PLAY_SECONDS,
            check=False,
        )
        assert done.stdout.startswith("{"), f"{done.stdout}\n{done.stderr}"
        told = json.loads(done.stdout)
        tasks = told["plays"][0]["tasks"]
        results = {task["task"]["name"]: task["hosts"]["localhost"] for task in tasks}
        failed = {name: result.get("msg") for name, result in results.items() if result.get("failed")}
        assert done.returncode == 0, failed or done.stderr
        return results

    return run


def changed(results: dict[str, dict[str, Any]]) -> list[str]:
    """Tasks that changed something."""
    return [name for name, result in results.items() if result.get("changed")]


# --- users, groups, rights, pools


def test_users_groups_rights_and_pools(play: Play, node: Node) -> None:
    made = ["group", "user", "rule", "pool", "storage member"]
    first = play("access.yml")
    assert changed(first) == made
    assert first["members"]["proxmox_users"][0]["groups"] == ["operators"]
    assert first["members"]["proxmox_users"][0]["enabled"] is True
    assert first["groups"]["proxmox_groups"][0]["users"] == ["carla@pve"]
    assert {realm["realm"] for realm in first["realms"]["proxmox_domains"]} >= {"pam", "pve"}
    assert changed(play("access.yml")) == []
    assert node.api.get("/access/permissions", userid="carla@pve", path="/pool/playground")["/pool/playground"]
    gone = play("access_away.yml", by_password=True, pool_is_there=True)
    assert changed(gone) == ["storage member", "rule", "pool", "user", "group"]
    assert changed(play("access_away.yml", pool_is_there=False)) == []


# --- storages and files


def test_storages_and_files(play: Play, node: Node, demo_image: Prepared, tmp_path: Path) -> None:
    medium = tmp_path / "medium.iso"
    content = bytearray(MIB)
    content[32768:32774] = b"\x01CD001"
    medium.write_bytes(content)
    image = tmp_path / "played.qcow2"
    image.symlink_to(demo_image.image)
    folder = tmp_path / "second"
    folder.mkdir()
    variables = {"folder": str(folder), "medium": str(medium), "image": str(image)}
    first = play("storage.yml", **variables)
    assert changed(first) == ["storage", "medium", "image"]
    assert {row["storage"] for row in first["storages"]["proxmox_storages"]} >= {"local", "second"}
    files = {row["volid"] for row in first["contents"]["proxmox_storage_content"]}
    assert files == {"second:iso/medium.iso", "second:import/played.qcow2"}
    assert (folder / "template" / "iso" / "medium.iso").read_bytes() == bytes(content)
    second = play("storage.yml", **variables)
    assert changed(second) == []
    assert changed(play("storage_away.yml")) == ["medium", "storage"]
    assert (folder / "import" / "played.qcow2").exists(), "removing a storage removes no file"


# --- a machine


@pytest.fixture(scope="module")
def vmid(node: Node) -> int:
    return node.next_vmid()


@pytest.fixture(scope="module")
def played(play: Play, node: Node, vmid: int, demo_volume: str) -> Iterator[dict[str, dict[str, Any]]]:
    """The machine runs; what the first play told."""
    yield play("guest.yml", vmid=vmid, disk=demo_volume)
    if any(row["vmid"] == vmid for row in node.api.get("/cluster/resources", type="vm")):
        node.api.wait(node.api.post(f"{node.path}/qemu/{vmid}/status/stop"))
        node.api.wait(node.api.delete(f"{node.path}/qemu/{vmid}"))


@pytest.mark.guest
def test_a_machine_is_made(play: Play, node: Node, vmid: int, played: dict[str, Any], demo_volume: str) -> None:
    assert changed(played) == ["create", "disk", "card", "pool", "member", "start"]
    assert played["create"]["mac"]["net0"].startswith("BC:24:11:")
    assert played["create"]["devices"]["virtio0"].startswith(f"local:{vmid}/vm-{vmid}-disk-0")
    assert played["state"]["status"] == "running"
    config = node.api.get(f"{node.path}/qemu/{vmid}/config")
    assert (config["tags"], config["onboot"], config["name"]) == ("ansible;test", 0, "played")
    assert "backup=0" in config["scsi1"]
    assert "link_down=1" in config["net1"]
    assert changed(play("guest.yml", vmid=vmid, disk=demo_volume)) == []


@pytest.mark.guest
def test_the_inventory_has_it(
    played: dict[str, Any], node: Node, vmid: int, surroundings: dict[str, str], tmp_path: Path
) -> None:
    eventually(lambda: node.api.send("POST", f"{node.path}/qemu/{vmid}/agent/ping").status_code == 200, 90, "the agent")
    source = tmp_path / "test.proxmox.yml"
    options = {
        "plugin": "community.proxmox.proxmox",
        "url": node.url,
        "user": "admin@pve",
        "password": PASSWORD,
        "validate_certs": True,
        "want_facts": True,
        "qemu_extended_statuses": True,
        "want_proxmox_nodes_ansible_host": True,
        "keyed_groups": [{"key": "proxmox_tags_parsed", "prefix": "tag"}],
        "compose": {"ansible_host": "proxmox_agent_interfaces | map(attribute='ip-addresses') | flatten | first"},
    }

    def listed() -> dict[str, Any]:
        source.write_text(json.dumps(options))
        done = subprocess.run(
            [PROGRAMS / "ansible-inventory", "-i", source, "--list"],
            env=surroundings,
            capture_output=True,
            text=True,
            timeout=PLAY_SECONDS,
            check=True,
        )
        assert "Failed" not in done.stderr, done.stderr
        found: dict[str, Any] = json.loads(done.stdout, object_hook=lambda part: part.get("__ansible_unsafe", part))
        return found

    found = listed()
    facts = found["_meta"]["hostvars"]["played"]
    assert (facts["proxmox_vmid"], facts["proxmox_status"], facts["proxmox_qmpstatus"]) == (vmid, "running", "running")
    assert facts["proxmox_tags_parsed"] == ["ansible", "test"]
    assert facts["proxmox_snapshots"] == []
    cards = {card["name"]: card for card in facts["proxmox_agent_interfaces"]}
    assert cards["eth0"]["mac-address"].upper() == played["create"]["mac"]["net0"]
    for group in ("proxmox_all_running", f"proxmox_{node.name}_qemu", "proxmox_pool_played", "tag_ansible"):
        assert "played" in found[group]["hosts"], group
    assert found["proxmox_nodes"]["hosts"] == [node.name]
    # By token, as most do.
    del options["password"]
    token = {"token_id": "ansible", "token_secret": surroundings["PROXMOX_TOKEN_SECRET"]}
    options |= token
    assert "played" in listed()["_meta"]["hostvars"]


@pytest.mark.guest
def test_a_machine_is_changed_while_it_runs(play: Play, node: Node, vmid: int, played: dict[str, Any]) -> None:
    told = play("guest_change.yml", vmid=vmid)
    assert changed(told) == ["update", "resize", "detach", "remove", "remove card"]
    pending = {row["key"]: row for row in node.api.get(f"{node.path}/qemu/{vmid}/pending")}
    assert (pending["memory"]["value"], pending["memory"]["pending"]) == ("160", "192")
    assert told["wait for the address"]["proxmox_vms"][0]["config"]["memory"] == "160"
    assert told["pending"]["proxmox_vms"][0]["config"]["memory"] == "192"
    config = node.api.get(f"{node.path}/qemu/{vmid}/config")
    assert not {"scsi1", "unused0", "net1"} & set(config)
    assert config["description"] == "changed by a play"
    rows = node.api.get(f"{node.path}/storage/local/content", vmid=vmid)
    assert [row["volid"] for row in rows] == [config["virtio0"].split(",")[0]]
    assert [row["node"] for row in told["nodes"]["proxmox_nodes"]] == [node.name]
    assert {row["type"] for row in told["tasks"]["proxmox_tasks"]} >= {"qmcreate", "qmstart", "resize"}


@pytest.mark.guest
def test_a_machine_is_removed(play: Play, node: Node, vmid: int, played: dict[str, Any]) -> None:
    assert changed(play("guest_away.yml", vmid=vmid, is_there=True)) == ["restart", "stop", "remove", "pool"]
    assert node.api.get(f"{node.path}/storage/local/content", vmid=vmid) == []
    assert changed(play("guest_away.yml", vmid=vmid, is_there=False)) == []


def test_a_machine_that_cannot_be_made_says_why(play: Play, node: Node) -> None:
    with pytest.raises(AssertionError, match="storage 'nowhere' does not exist"):
        play("guest.yml", vmid=node.next_vmid(), disk="nowhere:import/none.qcow2")


# --- a container

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHz1l2Dc5H1OIA0+IgkQCY4ppgSQf8Mk0l2S4l3JkfXm anna@laptop"


def test_a_container_is_made_changed_and_removed(play: Play, node: Node, template: str) -> None:
    vmid = node.next_vmid()
    variables = {"vmid": vmid, "template": template, "key": KEY}
    first = play("container.yml", **variables)
    assert changed(first) == ["pool", "create", "start"]
    config = node.api.get(f"{node.path}/lxc/{vmid}/config")
    assert (config["tags"], config["onboot"], config["hostname"]) == ("ansible;test", 0, "contained")
    assert (config["features"], config["unprivileged"], config["nameserver"]) == ("nesting=1", 1, "10.9.9.9")
    (told,) = first["look"]["proxmox_vms"]
    assert (told["id"], told["status"], told["type"]) == (f"lxc/{vmid}", "running", "lxc")
    assert {card["name"] for card in told["network"]} == {"lo", "eth0"}
    assert changed(play("container.yml", **variables)) == []
    last = play("container_change.yml", vmid=vmid)
    assert changed(last) == ["update", "restart", "stop", "remove", "pool"]
    assert node.api.get(f"{node.path}/storage/local/content", vmid=vmid) == []
