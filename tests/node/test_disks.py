# SPDX-License-Identifier: AGPL-3.0-or-later
"""Disks, media and cards of a machine, changed while it runs and while it does not, as the guest inside sees them."""

import hashlib
import subprocess
from pathlib import Path

import pytest
from tests.node.client import ApiError
from tests.node.harness import Guest, Node, eventually

pytestmark = pytest.mark.guest

MIB = 1 << 20
GIB = 1 << 30


def sectors(guest: Guest, disk: str) -> int:
    """Size of a disk as the guest sees it, in bytes; 0 without."""
    return int(guest.inside("sh", "-c", f"cat /sys/block/{disk}/size 2>/dev/null || echo 0")) * 512


def block_devices(guest: Guest) -> set[str]:
    return set(guest.inside("ls", "/sys/block").split())


def cards(guest: Guest) -> set[str]:
    return {name for name in guest.inside("ls", "/sys/class/net").split() if name.startswith("eth")}


def volume(guest: Guest, key: str) -> str:
    return str(guest.config()[key]).split(",")[0]


def option(guest: Guest, key: str, name: str) -> str | None:
    """A property of an option's text."""
    pairs = dict(part.partition("=")[::2] for part in str(guest.config()[key]).split(","))
    return pairs.get(name)


@pytest.fixture(scope="module")
def other(node: Node, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A second storage."""
    folder = tmp_path_factory.mktemp("other")
    node.root.post("/storage", storage="other", type="dir", path=str(folder), content="images,iso")
    return "other"


@pytest.fixture(scope="module")
def iso(node: Node, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An optical medium with one file."""
    folder = tmp_path_factory.mktemp("iso")
    (folder / "tree").mkdir()
    (folder / "tree/hello").write_text("from the medium\n")
    image = folder / "hello.iso"
    subprocess.run(["genisoimage", "-quiet", "-R", "-o", image, folder / "tree"], check=True)
    target = node.paths.local_storage / "template/iso/hello.iso"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(image.read_bytes())
    return "local:iso/hello.iso"


# --- growing


def test_a_disk_grows_while_the_guest_runs(guest: Guest) -> None:
    before = sectors(guest, "vda")
    guest.api.wait(guest.api.put(f"{guest.path}/resize", disk="virtio0", size="+64M"))
    assert sectors(guest, "vda") == before + 64 * MIB
    assert option(guest, "virtio0", "size") == f"{(before + 64 * MIB) // MIB}M"


def test_a_disk_grows_while_it_does_not(node: Node, demo_volume: str) -> None:
    guest = node.guest(disk=demo_volume)
    guest.api.wait(guest.api.put(f"{guest.path}/resize", disk="virtio0", size="300M"))
    assert option(guest, "virtio0", "size") == "300M"
    guest.run("start")
    guest.wait_agent()
    assert sectors(guest, "vda") == 300 * MIB
    guest.destroy()


def test_a_disk_does_not_shrink(guest: Guest) -> None:
    with pytest.raises(ApiError) as caught:
        guest.api.put(f"{guest.path}/resize", disk="virtio0", size="10M")
    assert "shrinking disks is not supported" in str(caught.value)
    with pytest.raises(ApiError) as caught:
        guest.api.put(f"{guest.path}/resize", disk="scsi7", size="+1G")
    assert caught.value.errors == {"disk": "disk 'scsi7' does not exist"}


# --- plugging


@pytest.mark.parametrize(("key", "device"), [("virtio1", "vdb"), ("scsi1", "sda")])
def test_a_disk_is_plugged_and_unplugged(guest: Guest, key: str, device: str) -> None:
    before = block_devices(guest)
    guest.set({key: "local:0.125"})
    eventually(lambda: device in block_devices(guest), 10, f"{device} inside")
    assert sectors(guest, device) == 128 * MIB
    guest.inside("sh", "-c", f"echo written >/dev/{device}; sync")
    made = volume(guest, key)
    guest.set(delete=key)
    eventually(lambda: block_devices(guest) == before, 10, f"{device} gone")
    config = guest.config()
    assert key not in config
    assert config["unused0"] == made
    guest.set({key: made})
    eventually(lambda: device in block_devices(guest), 10, f"{device} back inside")
    assert guest.inside("head", "-n1", f"/dev/{device}") == "written"
    assert "unused0" not in guest.config()
    guest.api.put(f"{guest.path}/unlink", idlist=key, force=1)
    eventually(lambda: block_devices(guest) == before, 10, f"{device} gone")
    config = guest.config()
    assert key not in config
    assert "unused0" not in config
    assert made.split(":")[1] not in guest.node.images()


def test_a_card_is_plugged_and_unplugged(guest: Guest) -> None:
    taps = guest.node.taps()
    guest.set(net1="virtio,bridge=vmbr0")
    eventually(lambda: cards(guest) == {"eth0", "eth1"}, 10, "eth1")
    eventually(lambda: len(guest.addresses()) == 2, 30, "an address of eth1")
    assert len(guest.node.taps()) == len(taps) + 1
    mac = str(option(guest, "net1", "virtio"))
    assert guest.inside("cat", "/sys/class/net/eth1/address") == mac.lower()
    guest.set(net1=f"virtio={mac},bridge=vmbr0,link_down=1")
    eventually(lambda: guest.inside("cat", "/sys/class/net/eth1/operstate") == "down", 10, "the cable out")
    guest.set(net1=f"virtio={mac},bridge=vmbr0")
    eventually(lambda: guest.inside("cat", "/sys/class/net/eth1/operstate") == "up", 10, "the cable in")
    guest.set(delete="net1")
    eventually(lambda: cards(guest) == {"eth0"}, 10, "eth1 gone")
    assert guest.node.taps() == taps
    assert "net1" not in guest.config()


def test_a_card_of_a_bridge_that_is_not_there_is_not_plugged(guest: Guest) -> None:
    taps = guest.node.taps()
    upid = guest.api.post(f"{guest.path}/config", net2="virtio,bridge=vmbr99")
    assert guest.api.ended(upid) == "WARNINGS: 1"
    assert any("hotplug problem" in line and "vmbr99" in line for line in guest.api.log(upid))
    assert cards(guest) == {"eth0"}
    assert guest.node.taps() == taps
    guest.set(revert="net2")
    assert "net2" not in guest.config()


def test_without_the_feature_a_disk_waits_for_the_next_start(node: Node) -> None:
    guest = node.guest(start=True, hotplug="network")
    guest.set(scsi1="local:0.125")
    assert "scsi1" in guest.config()
    assert "scsi1" not in guest.config(current=1)
    rows = {row["key"]: row for row in guest.api.get(f"{guest.path}/pending")}
    assert rows["scsi1"]["pending"].startswith("local:")
    guest.run("stop")
    guest.run("start")
    assert "scsi1" in guest.config(current=1)
    guest.destroy()


# --- media


def test_a_medium_is_put_in_and_taken_out(node: Node, demo_volume: str, iso: str) -> None:
    guest = node.guest(disk=demo_volume, scsihw="virtio-scsi-pci", scsi2="none,media=cdrom", start=True)
    guest.wait_agent()
    assert sectors(guest, "sr0") <= GIB
    guest.set(scsi2=f"{iso},media=cdrom")
    read = "mkdir -p /mnt; mount -t iso9660 /dev/sr0 /mnt && cat /mnt/hello; umount /mnt"
    assert eventually(lambda: guest.inside("sh", "-c", read + "; true"), 20) == "from the medium"
    guest.set(scsi2="none,media=cdrom")
    assert guest.config()["scsi2"] == "none,media=cdrom"
    assert (
        guest.inside("sh", "-c", "dd if=/dev/sr0 of=/dev/null count=1 2>/dev/null && echo medium || echo empty")
        == "empty"
    )
    guest.set(scsi2=f"{iso},media=cdrom")
    assert eventually(lambda: guest.inside("sh", "-c", read + "; true"), 20) == "from the medium"
    guest.destroy()
    assert (node.paths.local_storage / "template/iso/hello.iso").exists()


# --- moving


def fill(guest: Guest, device: str) -> str:
    """Writes something to a whole disk; its SHA-256 as the guest computes it."""
    guest.inside("sh", "-c", f"head -c 16M /dev/urandom >/dev/{device}; sync", seconds=60)
    return digest(guest, device)


def digest(guest: Guest, device: str) -> str:
    script = f"echo 3 >/proc/sys/vm/drop_caches; sha256sum /dev/{device}"
    return guest.inside("sh", "-c", script, seconds=60).split()[0]


def test_a_disk_moves_while_the_guest_runs(guest: Guest, other: str) -> None:
    guest.set(virtio2="local:0.0625,format=raw")
    eventually(lambda: "vdb" in block_devices(guest), 10)
    before, old = fill(guest, "vdb"), volume(guest, "virtio2")
    move = f"{guest.path}/move_disk"
    guest.api.wait(guest.api.post(move, disk="virtio2", storage=other, format="qcow2"))
    new = volume(guest, "virtio2")
    assert new.startswith("other:")
    assert new.endswith(".qcow2")
    assert guest.config()["unused0"] == old
    assert digest(guest, "vdb") == before
    after = fill(guest, "vdb")
    guest.api.wait(guest.api.post(move, disk="virtio2", storage="local", format="raw", delete=1))
    assert digest(guest, "vdb") == after
    config = guest.config()
    assert volume(guest, "virtio2").startswith("local:")
    assert [key for key in config if key.startswith("unused")] == ["unused0"]
    guest.set(delete="unused0")
    assert old.split(":")[1] not in guest.node.images()
    guest.api.put(f"{guest.path}/unlink", idlist="virtio2", force=1)


def test_a_disk_moves_while_the_guest_does_not_run(node: Node, demo_volume: str, other: str) -> None:
    guest = node.guest(disk=demo_volume)
    move = f"{guest.path}/move_disk"
    guest.api.wait(guest.api.post(move, disk="virtio0", storage=other, format="qcow2", delete=1))
    assert volume(guest, "virtio0") == f"other:{guest.vmid}/vm-{guest.vmid}-disk-0.qcow2"
    assert "unused0" not in guest.config()
    assert not [name for name in node.images() if name.startswith(f"{guest.vmid}/")]
    guest.run("start")
    guest.wait_agent()
    guest.run("stop")
    guest.api.wait(guest.api.post(move, disk="virtio0", storage=other, format="raw"))
    assert volume(guest, "virtio0").endswith(".raw")
    assert guest.config()["unused0"].endswith(".qcow2")
    with pytest.raises(ApiError) as caught:
        guest.api.post(move, disk="virtio0", storage=other, format="raw")
    assert caught.value.message == "you can't move to the same storage with same format"
    guest.run("start")
    guest.wait_agent()
    guest.destroy()


# --- the end of disks


def test_destroying_a_machine_removes_all_of_it(node: Node, other: str) -> None:
    guest = node.guest(
        start=True, scsi0="local:0.1", virtio1="other:0.1,format=qcow2", scsi3="local:0.1", net0="virtio,bridge=vmbr0"
    )
    guest.set(delete="scsi3")
    assert "unused0" in guest.config(current=1)
    assert len([name for name in node.images() if name.startswith(f"{guest.vmid}/")]) == 2
    node.root.put("/access/acl", path=f"/vms/{guest.vmid}", users="admin@pve", roles="PVEVMAdmin")
    guest.run("stop")
    assert not [group for group in node.groups() if group.name == f"guest-{guest.vmid}"]
    guest.api.wait(guest.api.delete(guest.path, purge=1))
    assert not [name for name in node.images() if name.startswith(f"{guest.vmid}/")]
    folder = Path(node.root.get("/storage/other")["path"])
    assert not list(folder.glob(f"images/{guest.vmid}/*"))
    assert not node.paths.guest_run(guest.vmid).exists()
    assert guest.vmid not in [row["vmid"] for row in node.api.get(f"{node.path}/qemu")]
    assert guest.vmid not in node.machines()


def test_images_that_no_option_names_go_only_when_told(node: Node) -> None:
    guest = node.guest(scsi0="local:0.1")
    stray = f"local:{guest.vmid}/vm-{guest.vmid}-disk-9.raw"
    made = node.api.post(
        f"{node.path}/storage/local/content", vmid=guest.vmid, filename=f"vm-{guest.vmid}-disk-9.raw", size="1M"
    )
    assert made == stray
    node.api.wait(node.api.delete(guest.path))
    assert [name for name in node.images() if name.startswith(f"{guest.vmid}/")] == [stray.split(":")[1]]
    again = node.guest(vmid=guest.vmid)
    node.api.wait(node.api.delete(again.path, destroy_unreferenced_disks=1))
    assert not [name for name in node.images() if name.startswith(f"{guest.vmid}/")]


def test_an_imported_disk_is_the_same_to_the_byte(node: Node, demo_volume: str, tmp_path: Path) -> None:
    guest = node.guest(disk=demo_volume)
    source = node.paths.local_storage / "import" / demo_volume.rpartition("/")[2]
    plain = tmp_path / "plain"
    subprocess.run(["qemu-img", "convert", "-O", "raw", source, plain], check=True)
    made = node.paths.local_storage / "images" / f"{guest.vmid}/vm-{guest.vmid}-disk-0.raw"
    assert hashlib.sha256(made.read_bytes()).digest() == hashlib.sha256(plain.read_bytes()).digest()
    assert made.stat().st_blocks * 512 < plain.stat().st_size * 3 / 4, "holes stay holes"
    guest.destroy()
