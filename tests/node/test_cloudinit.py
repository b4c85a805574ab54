# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a machine is told reaches it: the demonstration guest reads its medium, also when that changes under it."""

import json
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import yaml
from tests.node.client import ApiError
from tests.node.harness import Guest, Node, eventually

from orrery.access.shadow import matches

pytestmark = pytest.mark.guest

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHz1l2Dc5H1OIA0+IgkQCY4ppgSQf8Mk0l2S4l3JkfXm anna@laptop"
PLAIN = "Zq7unlikely"
PASSWORD = f"päss: 'wörd' \"🦉\"{PLAIN}"
READ = """
modprobe sr_mod; modprobe isofs; mkdir -p /mnt/seed
mount -t iso9660 -o ro /dev/sr0 /mnt/seed || exit 3
cat "/mnt/seed/$1"; code=$?; umount /mnt/seed; exit $code
"""


def inside(guest: Guest, name: str) -> str:
    """A file of the medium, as the guest sees it."""
    return guest.inside("sh", "-c", READ, "sh", name)


def label(guest: Guest) -> str:
    """The label by which the guest finds the medium: 32 bytes of the volume descriptor in sector 16."""
    return guest.inside("sh", "-c", "dd if=/dev/sr0 bs=1 skip=32808 count=32 2>/dev/null").strip()


def volume_file(node: Node, guest: Guest) -> list[str]:
    return sorted(path.name for path in (node.paths.local_storage / "images" / str(guest.vmid)).glob("*cloudinit*"))


@pytest.fixture(scope="module")
def told(node: Node, demo_volume: str) -> Guest:
    """A running guest that was told something at its creation."""
    return node.guest(
        disk=demo_volume,
        start=True,
        name="web",
        scsihw="virtio-scsi-pci",
        scsi1="local:cloudinit",
        ciuser="anna",
        cipassword=PASSWORD,
        sshkeys=quote(KEY, safe=""),
        ipconfig0="ip=192.0.2.5/24,gw=192.0.2.1",
        nameserver="192.0.2.53",
        searchdomain="lan.example",
    ).wait_agent()


def test_the_guest_reads_what_it_is_told(told: Guest) -> None:
    assert label(told) == "cidata"
    text = inside(told, "user-data")
    assert text.startswith("#cloud-config\n")
    user = yaml.safe_load(text)
    assert (user["hostname"], user["fqdn"], user["user"]) == ("web", "web.lan.example", "anna")
    assert user["ssh_authorized_keys"] == [KEY]
    assert matches(PASSWORD, user["password"])
    assert yaml.safe_load(inside(told, "meta-data"))["local-hostname"] == "web"
    card, resolver = yaml.safe_load(inside(told, "network-config"))["config"]
    assert card["mac_address"] in told.inside("cat", "/sys/class/net/eth0/address")
    assert card["subnets"] == [{"type": "static", "address": "192.0.2.5/24", "gateway": "192.0.2.1"}]
    assert resolver == {"type": "nameserver", "address": ["192.0.2.53"], "search": ["lan.example"]}
    assert told.config()["scsi1"] == f"local:{told.vmid}/vm-{told.vmid}-cloudinit.raw,media=cdrom,size=4M"


def test_the_password_is_shown_to_nobody(told: Guest, node: Node) -> None:
    hashed = yaml.safe_load(inside(told, "user-data"))["password"]
    assert told.config()["cipassword"] == "**********"
    rows = {row["key"]: row for row in told.api.get(f"{told.path}/pending")}
    assert rows["cipassword"]["value"] == "**********"
    rows = {row["key"]: row for row in told.api.get(f"{told.path}/cloudinit")}
    assert rows["cipassword"] == {"key": "cipassword", "value": "**********"}
    shown = told.api.get(f"{told.path}/cloudinit/dump", type="user")
    assert yaml.safe_load(shown) == {**yaml.safe_load(inside(told, "user-data")), "password": "**********"}
    told.set(cipassword=PASSWORD + "2")
    kept = [path for folder in (node.paths.etc, node.paths.lib, node.paths.log) for path in folder.rglob("*")]
    for path in [path for path in kept if path.is_file() and path.stat().st_size < 64 << 20]:
        text = path.read_bytes()
        assert PLAIN.encode() not in text, path
        assert hashed.encode() not in text or path.name.startswith(node.paths.store_db.name), path


def test_a_change_reaches_a_guest_that_runs(told: Guest) -> None:
    before = yaml.safe_load(inside(told, "meta-data"))["instance-id"]
    told.set(ciuser="bert", delete="searchdomain")
    user = eventually(lambda: (u := yaml.safe_load(inside(told, "user-data")))["user"] == "bert" and u, 20)
    assert user["fqdn"] == "web"
    assert yaml.safe_load(inside(told, "meta-data"))["instance-id"] != before
    assert not [row for row in told.api.get(f"{told.path}/cloudinit") if {"pending", "delete"} & {*row}]
    same = yaml.safe_load(inside(told, "meta-data"))["instance-id"]
    told.set(description="nothing that it is told")
    told.api.put(f"{told.path}/cloudinit")
    assert yaml.safe_load(inside(told, "meta-data"))["instance-id"] == same


def test_other_formats(told: Guest) -> None:
    told.set(citype="configdrive2")
    assert label(told) == "config-2"
    meta = json.loads(inside(told, "openstack/latest/meta_data.json"))
    assert (meta["hostname"].partition(".")[0], meta["public_keys"]) == ("web", {"key-0": KEY})
    assert json.loads(inside(told, "openstack/latest/network_data.json"))["networks"][0]["ip_address"] == "192.0.2.5"
    told.set(citype="opennebula")
    assert label(told) == "CONTEXT"
    told.inside("sh", "-c", "mkdir -p /mnt/seed; mount -t iso9660 -o ro /dev/sr0 /mnt/seed")
    assert (
        told.inside("sh", "-c", '. /mnt/seed/context.sh; echo "$ETH0_IP $USERNAME"')
        == f"192.0.2.5 {told.config()['ciuser']}"
    )
    told.inside("umount", "/mnt/seed")
    told.set(delete="citype")
    assert label(told) == "cidata"


def test_files_of_the_users_own(told: Guest, node: Node) -> None:
    before = told.config()["ciuser"]
    folder = node.paths.local_storage / "snippets"
    folder.mkdir(exist_ok=True)
    (folder / "own.yaml").write_text("#cloud-config\nruncmd: [[touch, /told]]\n")
    told.set(cicustom="user=local:snippets/own.yaml,vendor=local:snippets/own.yaml")
    assert yaml.safe_load(inside(told, "user-data")) == {"runcmd": [["touch", "/told"]]}
    assert inside(told, "vendor-data") == inside(told, "user-data")
    (folder / "own.yaml").write_text("#cloud-config\nruncmd: []\n")
    told.api.put(f"{told.path}/cloudinit")
    assert yaml.safe_load(inside(told, "user-data")) == {"runcmd": []}
    (folder / "own.yaml").unlink()
    (folder / "own.yaml").symlink_to("/etc/shadow")
    upid = told.api.post(f"{told.path}/config", ciuser="carla")
    assert told.api.ended(upid) == "WARNINGS: 1"
    log = told.api.log(upid)
    assert any("not up to date" in line and "own.yaml" in line for line in log)
    rows = {row["key"]: row for row in told.api.get(f"{told.path}/cloudinit")}
    assert (rows["ciuser"]["value"], rows["ciuser"]["pending"]) == (before, "carla")
    told.set(delete="cicustom")
    assert yaml.safe_load(inside(told, "user-data"))["user"] == "carla"


def test_the_medium_moves_and_goes(told: Guest, node: Node, tmp_path: Path) -> None:
    node.root.post("/storage", storage="seeds", type="dir", path=str(tmp_path / "seeds"), content="images")
    told.api.wait(told.api.post(f"{told.path}/move_disk", disk="scsi1", storage="seeds", format="qcow2"))
    assert told.config()["scsi1"] == f"seeds:{told.vmid}/vm-{told.vmid}-cloudinit.qcow2,media=cdrom,size=4M"
    assert volume_file(node, told) == []
    assert yaml.safe_load(inside(told, "user-data"))["hostname"] == "web"
    with pytest.raises(ApiError, match="no disk image"):
        told.api.put(f"{told.path}/resize", disk="scsi1", size="+1G")
    told.set(scsi1="none,media=cdrom")
    assert not list((tmp_path / "seeds").rglob("*cloudinit*"))
    assert not [key for key in told.config() if key.startswith("unused")]
    told.set(scsi1="local:cloudinit")
    assert yaml.safe_load(inside(told, "user-data"))["hostname"] == "web"
    told.destroy()
    assert volume_file(node, told) == []
    assert node.paths.store_db.exists()
    node.root.delete("/storage/seeds")


def test_a_start_makes_what_is_missing(node: Node) -> None:
    guest = node.guest(ide2="local:cloudinit,format=qcow2", ciuser="anna")
    assert volume_file(node, guest) == [f"vm-{guest.vmid}-cloudinit.qcow2"]
    assert "ide2" not in str(guest.config().get("boot"))
    (node.paths.local_storage / "images" / str(guest.vmid) / f"vm-{guest.vmid}-cloudinit.qcow2").unlink()
    guest.run("start")
    assert volume_file(node, guest) == [f"vm-{guest.vmid}-cloudinit.qcow2"]
    guest.destroy()


def test_who_may_tell_it_what(node: Node) -> None:
    guest = node.guest(ide2="local:cloudinit", ciuser="anna")
    (node.paths.local_storage / "snippets").mkdir(exist_ok=True)
    (node.paths.local_storage / "snippets/secret.yaml").write_text("#cloud-config\nruncmd: [[secret]]\n")
    node.root.post("/access/users", userid="seed@pve", password="long enough it is")
    node.root.put("/access/acl", path=f"/vms/{guest.vmid}", users="seed@pve", roles="PVEVMUser")
    node.root.put("/access/acl", path="/storage/local", users="seed@pve", roles="PVEDatastoreUser")
    user = node.anonymous().log_in("seed@pve", "long enough it is")
    user.put(f"{guest.path}/config", ciuser="bert")
    user.put(f"{guest.path}/cloudinit")
    assert "bert" in user.get(f"{guest.path}/cloudinit/dump", type="user")
    for volume in ("local:snippets/secret.yaml", "local:snippets/none.yaml"):
        with pytest.raises(ApiError) as caught:
            user.put(f"{guest.path}/config", cicustom=f"user={volume}")
        assert caught.value.status == 403
    guest.set(cicustom="user=local:snippets/secret.yaml")
    with pytest.raises(ApiError) as caught:
        user.get(f"{guest.path}/cloudinit/dump", type="user")
    assert caught.value.status == 403
    assert "instance-id" in user.get(f"{guest.path}/cloudinit/dump", type="meta")
    node.root.put("/access/acl", path=f"/vms/{guest.vmid}", users="seed@pve", roles="PVEVMUser", delete=True)
    node.root.put("/access/acl", path=f"/vms/{guest.vmid}", users="seed@pve", roles="PVEAuditor")
    for path in ("config", "cloudinit"):
        with pytest.raises(ApiError) as caught:
            user.put(f"{guest.path}/{path}", {"ciuser": "x"} if path == "config" else {})
        assert caught.value.status == 403
    user.close()
    guest.destroy()


def test_the_command_line(node: Node, tmp_path: Path) -> None:
    guest = node.guest(ide2="local:cloudinit", ciuser="anna", cipassword=PASSWORD)
    number = str(guest.vmid)
    assert "anna" in node.cli("vm", "cloudinit", "show", number).stdout
    shown = node.cli("vm", "cloudinit", "dump", number, "user").stdout
    assert yaml.safe_load(shown)["password"] == "**********"
    assert "made anew" in node.cli("vm", "cloudinit", "regenerate", number).stdout
    guest.destroy()
    (tmp_path / "password").write_text(PLAIN + "\n")
    words = (
        "--system",
        "debian",
        "--hostname",
        "db1",
        "--user",
        "anna",
        "--user-password-file",
        str(tmp_path / "password"),
    )
    done = node.cli("storage", "answer-disk", "local", "db1.iso", *words, "--set", "packages=vim,nginx")
    assert "made local:iso/db1.iso" in done.stdout
    medium = node.paths.local_storage / "template/iso/db1.iso"
    text = subprocess.run(["isoinfo", "-R", "-i", medium, "-x", "/preseed.cfg"], capture_output=True, check=True).stdout
    assert b"d-i netcfg/get_hostname string db1\n" in text
    assert b"vim nginx" in text
    assert PLAIN.encode() not in medium.read_bytes() + node.paths.audit_log.read_bytes()
    with pytest.raises(ApiError, match="already exists"):
        node.api.post(
            f"{node.path}/storage/local/answer-disk",
            filename="db1.iso",
            system="debian",
            hostname="x",
            user="y",
            password="z",
        )
    with pytest.raises(ApiError) as caught:
        node.api.post(
            f"{node.path}/storage/local/answer-disk",
            filename="x.iso",
            system="windows",
            hostname="x" * 20,
            user="y",
            password="z",
        )
    assert list(caught.value.errors) == ["hostname"]
    medium.unlink()


@pytest.mark.parametrize(
    ("options", "parameter"),
    [
        ({"virtio3": "local:cloudinit"}, "virtio3"),
        ({"ide2": "local:cloudinit", "sata1": "local:cloudinit"}, "sata1"),
        ({"ide2": "local:cloudinit,media=disk"}, "ide2"),
        ({"sshkeys": "no%20key"}, "sshkeys"),
        ({"ostype": "win11", "cipassword": "x"}, "cipassword"),
        ({"ipconfig0": "ip=192.0.2.5"}, "ipconfig0"),
        ({"ipconfig0": "gw=192.0.2.1"}, "ipconfig0"),
        ({"searchdomain": "a;$(reboot)"}, "searchdomain"),
    ],
)
def test_what_cannot_be_told(node: Node, options: dict[str, Any], parameter: str) -> None:
    with pytest.raises(ApiError) as caught:
        node.guest(**options)
    assert caught.value.status == 400
    assert parameter in caught.value.errors


def test_without_a_drive(node: Node) -> None:
    guest = node.guest(ciuser="anna")
    with pytest.raises(ApiError, match="no cloud-init drive"):
        guest.api.put(f"{guest.path}/cloudinit")
    assert yaml.safe_load(guest.api.get(f"{guest.path}/cloudinit/dump", type="user"))["user"] == "anna"
    assert {"key": "ciuser", "value": "anna"} in guest.api.get(f"{guest.path}/cloudinit")
    guest.destroy()
