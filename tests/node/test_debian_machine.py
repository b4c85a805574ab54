# SPDX-License-Identifier: AGPL-3.0-or-later
"""A Debian that is built here, told who it is by cloud-init, on a machine of a node: minutes without KVM."""

import hashlib
import shutil
from pathlib import Path
from urllib.parse import quote

import pytest
from tests.node import netns
from tests.node.harness import Guest, Node, eventually

from orrery.drivers.images import aptsources, debian_machine, debootstrap
from orrery.model.images import Debootstrap, find_entry
from orrery.operations.image_pull import _host_sources
from orrery.system.files import FileLock

CACHE = Path(__file__).resolve().parents[2] / "build" / "machines"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHz1l2Dc5H1OIA0+IgkQCY4ppgSQf8Mk0l2S4l3JkfXm anna@laptop"
SECONDS = 900.0

pytestmark = [pytest.mark.slow, pytest.mark.guest, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def image() -> Path:
    """The disk image; built once for each version of what builds it."""
    sources = [Path(str(module.__file__)) for module in (debian_machine, debootstrap)]
    version = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:12]
    CACHE.mkdir(parents=True, exist_ok=True)
    made = CACHE / f"debian-12-{version}.qcow2"
    with FileLock(CACHE / "lock", timeout=SECONDS), netns.outside():
        if not made.exists():
            entry = find_entry("debian-12-built", "machine")
            assert entry is not None
            assert isinstance(entry.source, Debootstrap)
            folder = CACHE / "work"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(mode=0o700)
            lines = aptsources.lines_for(entry.source, "debian", _host_sources())
            said: list[str] = []
            partial = folder / "image.qcow2"
            build = debootstrap.Build(entry.source, lines)
            debian_machine.build(build, folder, partial, said.append, lambda: None)
            partial.rename(made)
            shutil.rmtree(folder)
    return made


@pytest.mark.parametrize("bios", ["seabios", "ovmf"])
def test_it_is_who_it_was_told_to_be(node: Node, image: Path, bios: str) -> None:
    folder = node.paths.local_storage / "import"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(image, folder / "debian.qcow2")
    (folder / "debian.qcow2").chmod(0o644)
    guest = node.guest(
        disk="local:import/debian.qcow2",
        memory=768,
        bios=bios,
        name="web",
        searchdomain="lan.example",
        scsihw="virtio-scsi-pci",
        ide2="local:cloudinit",
        ciuser="anna",
        cipassword="geheim",
        ciupgrade="0",
        sshkeys=quote(KEY, safe=""),
    )
    guest.api.wait(guest.api.put(f"{guest.path}/resize", disk="virtio0", size="4G"))
    guest.run("start")
    guest.wait_agent(SECONDS)
    assert told(guest, "status: done", "cloud-init", "status", "--wait")
    assert guest.inside("hostname", "-f") == "web.lan.example"
    assert guest.inside("cat", "/home/anna/.ssh/authorized_keys").splitlines() == [KEY]
    assert guest.inside("sh", "-c", "grep ^anna: /etc/shadow").startswith("anna:$6$")
    assert guest.ssh("sudo -n id -u", user="anna", password="geheim") == "0"
    assert int(guest.inside("sh", "-c", "df --output=size -k / | tail -1")) > 3 << 20, "the disk's whole size"
    assert guest.inside("systemctl", "is-system-running") in ("running", "starting")
    first = guest.inside("cat", "/var/lib/cloud/data/instance-id")
    guest.set(name="web2")
    guest.run("reboot", timeout=300)
    guest.wait_agent(SECONDS)
    assert told(guest, "status: done", "cloud-init", "status", "--wait")
    assert guest.inside("cat", "/var/lib/cloud/data/instance-id") != first
    assert guest.inside("hostname") == "web2"
    guest.destroy()


def told(guest: Guest, words: str, *command: str) -> bool:
    """Waits until a program inside says something."""
    return bool(eventually(lambda: words in guest.inside(*command, seconds=SECONDS), SECONDS, words))
