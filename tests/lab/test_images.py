# SPDX-License-Identifier: AGPL-3.0-or-later
"""Images from the real thing: a template built from a mirror's packages, and a registry that is not ours."""

import contextlib
import socket
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.node import netns
from tests.unit.drivers.images.imagesite import OciImage, entry, folder, symlink, tar
from tests.unit.operations.test_image_pull import configure
from tests.unit.operations.test_volume import Node, node

from orrery.drivers.images.registry import Registry
from orrery.model.images import Reference, find_entry
from orrery.operations.image_oci import OciPull
from orrery.operations.image_pull import PullImage
from orrery.operations.image_records import oci_options
from orrery.operations.image_workshop import Web

__all__ = ["node"]


def contents(archive: Path) -> dict[str, tarfile.TarInfo]:
    """Members of a template by name, whatever it is packed with."""
    plain = archive
    if archive.suffix == ".zst":
        plain = archive.with_suffix("")
        subprocess.run(["zstd", "-dqf", str(archive), "-o", str(plain)], check=True)
    try:
        with tarfile.open(plain) as opened:
            return {member.name.removeprefix("./"): member for member in opened.getmembers()}
    finally:
        if plain != archive:
            plain.unlink()


@pytest.mark.slow
@pytest.mark.root
@pytest.mark.timeout(1800)
def test_debian_from_its_packages(node: Node) -> None:
    """Needs a Debian mirror: the one that the host's apt uses."""
    wanted = find_entry("debian-12", "container")
    assert wanted is not None
    begun = time.monotonic()
    with netns.outside():
        node.run(PullImage("local", "debian-12", "container", wanted.volume, ssh=True))
    (file,) = node.everything()
    archive = node.root / file
    print(f"{time.monotonic() - begun:.0f} s, {archive.stat().st_size >> 20} MiB")
    members = contents(archive)
    for name in ("sbin/init", "usr/sbin/init", "lib/systemd/systemd"):
        if name in members:
            break
    else:
        raise AssertionError("there is no init")
    assert members["etc/passwd"].uid == 0
    assert max(member.uid for member in members.values()) < 65536
    assert "etc/systemd/system/ssh.service.d/keys.conf" in members
    assert members["etc/machine-id"].size == 0
    assert not {name for name in members if name.startswith("etc/ssh/ssh_host_")}
    assert not {"etc/hostname", "etc/resolv.conf"} & set(members)
    assert list((node.ctx.paths.lib / "build").iterdir()) == []


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[str]:
    """Debian's docker-registry on a free port; its HOST:PORT."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    config = tmp_path / "registry.yml"
    config.write_text(
        f"version: 0.1\nstorage: {{filesystem: {{rootdirectory: {tmp_path}/blobs}}}}\nhttp: {{addr: {address}}}\n"
    )
    with (tmp_path / "registry.log").open("wb") as log:
        serving = subprocess.Popen(["docker-registry", "serve", str(config)], stdout=log, stderr=log)
    try:
        host, _, port = address.partition(":")
        for _ in range(200):
            with contextlib.suppress(OSError), socket.create_connection((host, int(port))):
                break
            time.sleep(0.05)
        yield address
    finally:
        serving.kill()
        serving.wait()


def push(image: OciImage, to: str, tmp_path: Path, *options: str) -> None:
    """Pushes an image by skopeo."""
    (tmp_path / "image.tar").write_bytes(image.archive())
    command = ["skopeo", "copy", "--quiet", "--insecure-policy", "--dest-tls-verify=false", *options]
    subprocess.run([*command, f"oci-archive:{tmp_path}/image.tar", f"docker://{to}"], check=True, timeout=60)


@pytest.mark.parametrize(("form", "options"), [("oci", ()), ("docker", ("--format", "v2s2"))])
def test_a_real_registry(node: Node, registry: str, tmp_path: Path, form: str, options: tuple[str, ...]) -> None:
    base = tar(
        folder("bin"),
        entry("bin/busybox", Path("/bin/busybox").read_bytes(), mode=0o755),
        symlink("bin/sh", "busybox"),
        entry("etc/old", b"x"),
    )
    upper = tar(entry("etc/.wh.old"), entry("etc/passwd", b"root:x:0:0::/:/bin/sh\n"))
    run = {"Entrypoint": ["/bin/sh"], "Cmd": ["-c", "exec sleep 1000"], "Env": ["PATH=/bin"]}
    push(OciImage(base, upper, run=run), f"{registry}/team/app:{form}", tmp_path, *options)
    configure(node, insecure_registries=registry)
    web = Web(node.store)
    assert Registry(web, Reference.parse(f"{registry}/team/app"), web.sources.insecure).tags() == [form]
    node.run(OciPull("local", f"{registry}/team/app:{form}", "vztmpl/app.tar"))
    members = contents(node.root / "template/cache/app.tar")
    assert set(members) == {".", "bin", "bin/busybox", "bin/sh", "etc", "etc/passwd"}
    assert oci_options(node.ctx, "local:vztmpl/app.tar") == {
        "entrypoint": "/bin/sh -c 'exec sleep 1000'",
        "env": "PATH=/bin",
    }
