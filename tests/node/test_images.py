# SPDX-License-Identifier: AGPL-3.0-or-later
"""Images on a real node: tasks that die leave nothing, and a launch ends in a guest with an address."""

import http.server
import json
import lzma
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from tests.node import netns
from tests.node.harness import BOOT_SECONDS, Node, eventually
from tests.unit.drivers.images.imagesite import OciImage, entry, folder, image_server, symlink, tar
from tests.unit.drivers.storage.test_fetch import Answer, serving
from tests.unit.operations.test_image_pull import ALPINE, ALPINE_BASE, ALPINE_DATA, alpine_pages
from tests.unit.operations.test_volume import Node as ImagesNode
from tests.unit.operations.test_volume import node as images_node

from orrery.demo.image import Prepared
from orrery.model.images import find_entry
from orrery.operations.image_pull import PullImage

__all__ = ["images_node"]


def left(node: Node) -> list[str]:
    """What an image's task may leave: staged files, working folders, programs."""
    found = [str(path) for path in node.paths.local_storage.rglob(".staging.*")]
    found += [str(path) for path in (node.paths.lib / "build").glob("*")]
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            # The namespace tells a build of this node's from one that somebody else's test runs.
            ours = (command.parent / "ns/net").stat().st_ino == Path("/proc/self/ns/net").stat().st_ino
            if ours and b"mmdebstrap" in command.read_bytes():
                found.append(str(command))
        except OSError:
            continue
    return found


def end(node: Node, upid: str, way: str) -> None:
    """Ends a task, and waits until nothing is left of it."""
    if way == "cancel":
        node.api.delete(f"{node.path}/tasks/{upid}")
    else:
        os.kill(int(upid.split(":")[2], 16), signal.SIGKILL)
    assert node.api.ended(upid) == ("received interrupt" if way == "cancel" else "unexpected status")
    eventually(lambda: not left(node), what="the removal of what the task had begun")
    assert node.locks() == []


def stuck(request: http.server.BaseHTTPRequestHandler) -> None:
    """Begins well, and then says nothing for longer than the test takes."""
    request.send_response(200)
    request.send_header("Content-Length", str(len(ALPINE_DATA)))
    request.end_headers()
    request.wfile.write(ALPINE_DATA[:1000])
    request.wfile.flush()
    time.sleep(30)


@pytest.mark.parametrize("way", ["cancel", "kill"])
def test_a_download_that_is_ended(node: Node, way: str) -> None:
    with serving({**alpine_pages(), f"{ALPINE_BASE}/{ALPINE}": stuck}) as site:
        node.root.put("/cluster/images", mirrors=f"https://dl-cdn.alpinelinux.org/={site.url}/")
        upid = node.api.post(f"{node.path}/images", image="alpine-3.22", storage="local")
        eventually(lambda: left(node), what="the staged file")
        end(node, upid, way)
    assert not [row for row in node.api.get(f"{node.path}/images") if row["image"] == "alpine-3.22" and "volid" in row]


@pytest.mark.parametrize("way", ["cancel", "kill"])
def test_a_build_that_is_ended(node: Node, way: str) -> None:
    """The mirror answers nothing, so the build hangs until it is ended, and its namespaces end with it."""
    pages: dict[str, Answer] = {f"/debian/dists/{suite}/InRelease": stuck for suite in ("bookworm", "bookworm-updates")}
    with serving(pages) as site:
        node.root.put("/cluster/images", mirrors=f"http://deb.debian.org/={site.url}/")
        upid = node.api.post(f"{node.path}/images", image="debian-12", storage="local")
        eventually(lambda: len(site.seen) > 0, what="the build's first request")
        assert any("cmdline" in each for each in left(node))
        end(node, upid, way)


def told_address(text: str) -> str:
    match = re.search(r"^address: ([0-9.]+)$", text, re.MULTILINE)
    assert match is not None, text
    return match[1]


@pytest.fixture
def images(node: Node, demo_archive: Path, demo_image: Prepared):
    """An image server that has the demonstration guests as Debian 12."""
    plain = subprocess.run(["zstd", "-dcf", str(demo_archive)], capture_output=True, check=True).stdout
    packed = lzma.compress(plain, preset=0)
    with serving(image_server(packed, demo_image.image.read_bytes())) as site:
        node.root.put("/cluster/images", simplestreams=site.url, mirrors="")
        yield site
    node.root.put("/cluster/images", simplestreams="")


def test_launch_of_a_container(node: Node, images) -> None:
    vmid = node.next_vmid()
    words = ("--name", "web1", "--disk", "1", "--memory", "64", "--vmid", str(vmid))
    said = node.cli("launch", "debian-bookworm", "--ct", *words, timeout=120).stdout
    address = told_address(said)
    config = node.api.get(f"{node.path}/lxc/{vmid}/config")
    assert (config["hostname"], config["unprivileged"]) == ("web1", 1)
    (row,) = node.api.get(f"{node.path}/addresses", vmid=vmid)
    assert (row["address"], row["card"]) == (address, "net0")
    before = len(images.seen)
    listed = json.loads(node.cli("image", "list", "--ct", "--json").stdout)
    assert all("volid" not in row or row["state"] == "fetched" for row in listed)
    again = node.next_vmid()
    node.cli("launch", "debian-bookworm", "--ct", "--disk", "1", "--vmid", str(again), "--no-start", timeout=120)
    assert len(images.seen) - before <= 4  # the lists once or twice, and never the image
    for number in (vmid, again):
        node.cli("ct", "stop", str(number), check=number == vmid)
        node.cli("ct", "destroy", str(number), "--yes")
    node.cli("image", "remove", "local:vztmpl/debian-bookworm_amd64.tar.xz")


def test_launch_of_a_machine(node: Node, images) -> None:
    vmid = node.next_vmid()
    words = ("--vm", "--name", "vm1", "--disk", "1", "--memory", "160", "--vmid", str(vmid))
    said = node.cli("launch", "debian-bookworm", *words, "--patience", str(int(BOOT_SECONDS)), timeout=240).stdout
    told_address(said)
    config = node.api.get(f"{node.path}/qemu/{vmid}/config")
    assert "cloudinit" in config["ide2"]
    assert config["ipconfig0"] == "ip=dhcp"
    node.cli("vm", "stop", str(vmid))
    node.cli("vm", "destroy", str(vmid), "--yes")
    node.cli("image", "remove", "local:import/debian-bookworm_amd64.qcow2")


def test_launch_of_an_oci_image(node: Node) -> None:
    """It runs its own program, with its own environment, and not an init."""
    names = ("sh", "sleep", "cat", "env")
    base = tar(
        folder("bin"),
        entry("bin/busybox", Path("/bin/busybox").read_bytes(), mode=0o755),
        *(symlink(f"bin/{name}", "busybox") for name in names),
        folder("etc"),
        folder("tmp", 0o777),
        entry("etc/passwd", b"root:x:0:0::/:/bin/sh\n"),
    )
    run = {"Entrypoint": ["/bin/sh", "-c"], "Cmd": ["env >/tmp/env; exec sleep 1000"], "Env": ["PATH=/bin", "A=b c"]}
    vmid = node.next_vmid()
    with serving(OciImage(base, run=run).pages("team/app", "1")) as site:
        host = site.url.removeprefix("http://")
        node.root.put("/cluster/images", {"insecure-registries": host})
        words = ("--disk", "1", "--memory", "64", "--vmid", str(vmid), "--patience", "0")
        node.cli("launch", f"{host}/team/app:1", *words, timeout=120)
    assert node.api.get(f"{node.path}/lxc/{vmid}/status/current")["status"] == "running"

    def environment() -> list[str]:
        done = node.cli("ct", "exec", str(vmid), "--", "cat", "/tmp/env", check=False)
        return str(done.stdout).splitlines()

    eventually(lambda: "A=b c" in environment(), what="the program's environment")
    node.cli("ct", "stop", str(vmid))
    node.cli("ct", "destroy", str(vmid), "--yes")
    node.root.put("/cluster/images", {"insecure-registries": ""})
    template = "local:vztmpl/app_1.tar"
    made = node.container(template, ostype="unmanaged", rootfs="local:1", env="A=mine")
    config = node.api.get(f"{made.path}/config")
    assert config["entrypoint"].startswith("/bin/sh -c ")
    assert config["env"] == "A=mine", "what the creator says holds"
    made.destroy()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_debian_that_was_built_here(node: Node, images_node: ImagesNode) -> None:
    """From a mirror's packages to systemd and an address inside an unprivileged container."""
    wanted = find_entry("debian-12", "container")
    assert wanted is not None
    with netns.outside():
        images_node.run(PullImage("local", "debian-12", "container", wanted.volume, ssh=True))
    (file,) = images_node.everything()
    template = node.import_template(images_node.root / file, wanted.filename)
    vmid = node.next_vmid()
    words = ("--name", "built1", "--disk", "2", "--vmid", str(vmid), "--patience", str(int(BOOT_SECONDS)))
    told_address(node.cli("launch", template, *words, timeout=300).stdout)

    def inside(*command: str) -> str:
        return str(node.cli("ct", "exec", str(vmid), "--", *command, check=False).stdout).strip()

    eventually(lambda: inside("systemctl", "is-system-running") in ("running", "degraded"), 120, "systemd")
    assert inside("systemctl", "--failed", "--no-legend", "--plain") == ""
    assert inside("hostname") == "built1"
    assert inside("systemctl", "is-active", "ssh") == "active"
    assert "ssh_host_ed25519_key" in inside("ls", "/etc/ssh")
    node.cli("ct", "stop", str(vmid))
    node.cli("ct", "destroy", str(vmid), "--yes")
    node.cli("image", "remove", template)


def test_media_are_changed_while_a_machine_runs(node: Node, demo_volume: str) -> None:
    folder_of_media = node.paths.local_storage / "template" / "iso"
    for name in ("one.iso", "two.iso"):
        data = bytearray(64 << 10)
        data[16 * 2048 + 1 : 16 * 2048 + 6] = b"CD001"
        (folder_of_media / name).write_bytes(data)
    guest = node.guest(demo_volume, ide2="local:iso/one.iso,media=cdrom", start=True)
    for words in (("insert", "local:iso/two.iso"), ("eject",), ("insert", "local:iso/one.iso")):
        node.cli("vm", words[0], str(guest.vmid), *words[1:])
        config = node.api.get(f"{node.path}/qemu/{guest.vmid}/config", current=1)
        assert config["ide2"].startswith(words[1] if len(words) > 1 else "none")
    node.cli("vm", "stop", str(guest.vmid))
    node.cli("vm", "destroy", str(guest.vmid), "--yes")
    for name in ("one.iso", "two.iso"):
        node.cli("storage", "delete", f"local:iso/{name}")
