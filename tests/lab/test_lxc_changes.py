# SPDX-License-Identifier: AGPL-3.0-or-later
"""Mounts, devices and network cards of real containers: at the start, and while they run."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.lab.lxc_lab import Lab, make_image, until
from tests.network.namespaces import Namespace, namespace

from orrery.drivers.network.network import Network
from orrery.errors import Failure
from orrery.model.container_devices import ContainerNic, PassedDevice
from orrery.system import livemounts
from orrery.system.mounts import ContainerMount, Folder, LoopImage

pytestmark = pytest.mark.root


CAP_SYS_RESOURCE = 24


def grow(lxc: Lab, mount: ContainerMount) -> None:
    """Grow a mounted image; the kernel lets only those do it who have a certain right, which root may lack here."""
    os.truncate(mount.source.path, 48 << 20)
    rights = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapEff"))
    if int(rights.split()[1], 16) >> CAP_SYS_RESOURCE & 1:
        lxc.driver.grow_mount(100, mount)
        assert int(lxc.out(100, f"df -k {mount.target} | tail -n1 | tr -s ' '").split()[1]) > 30 << 10
        return
    with pytest.raises(Failure, match=r"unable to grow '.*': grow the file system: Operation not permitted"):
        lxc.driver.grow_mount(100, mount)


def shared(folder: Path, name: str) -> Path:
    made = folder / name
    made.mkdir()
    made.chmod(0o755)
    (made / "from-host").write_text("x")
    return made


def test_mounts(lxc: Lab, tmp_path: Path) -> None:
    folder = shared(tmp_path, "shared")
    lxc.start(
        100,
        None,
        ContainerMount(
            "mp0", LoopImage(make_image(tmp_path / "data.raw")), "/mnt/da ta", options=("noexec", "noatime")
        ),
        ContainerMount("mp1", LoopImage(make_image(tmp_path / "fixed.raw")), "/fixed", read_only=True),
        ContainerMount("mp2", Folder(folder), "/shared", read_only=True, mapped=False),
        ContainerMount("mp3", Folder(folder), "/open", mapped=False),
        ContainerMount("mp4", Folder(folder / "from-host"), "/etc/single", mapped=False),
    )
    assert lxc.out(100, "cat /etc/single") == "x"
    mounts = lxc.out(100, "cat /proc/mounts")
    assert "/mnt/da\\040ta ext4 rw,nodev,noexec,noatime,idmapped" in mounts
    lxc.out(100, "touch '/mnt/da ta/x' && test -e /shared/from-host && mkdir /open/by-root 2>/dev/null || true")
    for script in (
        "touch /fixed/x",
        "touch /shared/x",
        "mount -o remount,bind,rw /shared",
        "mount -o remount,rw /fixed",
    ):
        assert lxc.run(100, "sh", "-c", script).returncode != 0, script
    assert lxc.out(100, "stat -c %u /shared/from-host") == "65534"  # the host's ids are nobody's here
    assert not (folder / "by-root").exists()
    assert lxc.out(100, "stat -c %u '/mnt/da ta'") == "0"
    lxc.driver.discard(100)
    assert lxc.traces() == []


def test_a_read_only_root(lxc: Lab) -> None:
    plan_mount = ContainerMount("rootfs", lxc.folder_root(100), read_only=True)
    lxc.start(100, None, plan_mount)
    assert lxc.run(100, "touch", "/etc/x").returncode != 0
    lxc.out(100, "echo x > /dev/null")


@pytest.mark.parametrize("unprivileged", ["1", "-"])
def test_mounts_come_and_go(lxc: Lab, tmp_path: Path, unprivileged: str) -> None:
    lxc.start(100, unprivileged=unprivileged)
    image = make_image(tmp_path / "later.raw")
    mount = ContainerMount("mp0", LoopImage(image), "/mnt/a/b", options=("noatime",))
    lxc.driver.attach_mount(100, mount)
    lxc.out(100, "echo good > /mnt/a/b/x; stat -c %u /mnt/a /mnt/a/b/x")
    assert lxc.out(100, "stat -c %u /mnt/a /mnt/a/b /mnt/a/b/x").split() == ["0", "0", "0"]
    with pytest.raises(Failure, match="mp0: something is mounted at '/mnt/a/b' already"):
        lxc.driver.attach_mount(100, mount)
    grow(lxc, mount)
    user = lxc.out(100, "cd /mnt/a/b; sleep 1000 >/dev/null 2>&1 & echo $!")
    with pytest.raises(Failure, match="busy"):
        lxc.driver.detach_mount(100, mount)
    assert lxc.out(100, "cat /mnt/a/b/x") == "good"
    lxc.out(100, f"kill -9 {user}; while kill -0 {user}; do :; done 2>/dev/null; true")
    lxc.driver.detach_mount(100, mount)
    assert not livemounts.in_use(image)


def test_detached_mounts_are_free(lxc: Lab, tmp_path: Path) -> None:
    early = ContainerMount("mp0", LoopImage(make_image(tmp_path / "early.raw")), "/early")
    late = ContainerMount("mp1", LoopImage(make_image(tmp_path / "late.raw")), "/late")
    lxc.start(100, None, early)
    grow(lxc, early)
    lxc.driver.attach_mount(100, late)
    for mount in (early, late):
        lxc.driver.detach_mount(100, mount)
        lxc.driver.detach_mount(100, mount)
        assert not livemounts.in_use(mount.source.path)
    assert "/early" not in lxc.out(100, "cat /proc/mounts")
    lxc.driver.attach_mount(100, early)
    lxc.out(100, "touch /early/x")


def test_a_link_in_the_container_leads_nowhere_else(lxc: Lab, tmp_path: Path) -> None:
    outside = shared(tmp_path, "outside")
    lxc.start(100)
    lxc.out(100, f"rm -rf /mnt; ln -s {outside} /mnt; mkdir -p {outside}")
    with pytest.raises(Failure, match="Too many levels of symbolic links"):
        lxc.driver.attach_mount(100, ContainerMount("mp0", Folder(shared(tmp_path, "shown")), "/mnt/x", mapped=False))
    assert not (outside / "x").exists()
    assert lxc.run(100, "ls", f"{outside}/x").returncode != 0  # nor elsewhere inside, such as over its /proc


@pytest.mark.parametrize("unprivileged", ["1", "-"])
def test_devices(lxc: Lab, unprivileged: str) -> None:
    tun = PassedDevice(path="/dev/net/tun", uid=5, gid=6, mode=0o600)
    lxc.start(100, unprivileged=unprivileged, dev0="/dev/net/tun,uid=5,gid=6,mode=0600")
    assert lxc.out(100, "stat -c '%u %g %a %t' /dev/net/tun") == "5 6 600 a"
    lxc.out(100, ": </dev/net/tun")
    lxc.driver.detach_device(100, tun)
    assert lxc.run(100, "sh", "-c", ": </dev/net/tun").returncode != 0
    lxc.driver.attach_device(100, tun)
    assert lxc.out(100, "stat -c '%u %g %a %t' /dev/net/tun") == "5 6 600 a"
    lxc.out(100, ": </dev/net/tun")
    loop = PassedDevice(path="/dev/loop-control", deny_write=True)
    assert lxc.run(100, "sh", "-c", ": </dev/loop-control").returncode != 0
    lxc.driver.attach_device(100, loop)
    lxc.out(100, ": </dev/loop-control")
    if unprivileged == "-":  # the control group alone decides there
        assert lxc.run(100, "sh", "-c", ": >/dev/loop-control").returncode != 0
    with pytest.raises(Failure, match="Device /dev/no-such does not exist"):
        lxc.driver.attach_device(100, PassedDevice(path="/dev/no-such"))
    lxc.driver.detach_device(100, tun)
    lxc.out(100, "rm -rf /dev/net/tun && mkdir -p /dev/net/tun")
    with pytest.raises(Failure, match="unable to show the device '/dev/net/tun'"):
        lxc.driver.attach_device(100, tun)
    if unprivileged == "-":
        assert lxc.run(100, "sh", "-c", "mknod /dev/tun c 10 200 && : </dev/tun").returncode != 0


def nic(index: int = 0, **options: str) -> ContainerNic:
    name = f"eth{index}"
    return ContainerNic(index=index, name=name, bridge="vmbr0", hwaddr=f"BC:24:11:00:00:0{index}", **options)  # type: ignore[arg-type]


def talk(lxc: Lab, network: Network) -> None:
    gateway = network.prepare().gateway
    prefix = str(gateway).rsplit(".", 1)[0]
    pair = network.veth_create(100, 0, nic())
    lxc.start(
        100,
        pairs={0: pair},
        net0=f"name=eth0,bridge=vmbr0,hwaddr=BC:24:11:00:00:00,ip={prefix}.200/20,gw={gateway}",
        entrypoint="sh -c 'trap exit TERM; while :; do sleep 0.1; done'",
    )
    eth0 = next(link for link in lxc.driver.interfaces(100) if link.name == "eth0")
    assert eth0.mac == "bc:24:11:00:00:00"
    assert f"{prefix}.200/20" in map(str, eth0.addresses)
    lxc.out(100, f"ping -c1 -W5 {gateway}")
    lxc.driver.attach_nic(100, network.veth_create(100, 1, nic(1)), "eth1")
    lxc.driver.address_nic(100, "eth1", [f"{prefix}.201/20", "fd00::5/64"])
    assert list(network.taps(100)) == [0, 1]
    assert {link.name for link in lxc.driver.interfaces(100)} == {"lo", "eth0", "eth1"}
    with pytest.raises(Failure, match="has a network card 'eth1' already"):
        lxc.driver.attach_nic(100, network.veth_create(100, 2, nic(2)), "eth1")
    network.tap_remove(100, 2)
    assert lxc.driver.detach_nic(100, "eth1")
    assert not lxc.driver.detach_nic(100, "eth1")
    assert list(network.taps(100)) == [0]
    assert network.guest_counters()[100][1] > 0
    lxc.driver.ask_to_stop(100)
    assert lxc.driver.wait_end(100, 60)
    lxc.driver.forget(100)
    network.tap_remove_all(100)
    network.veth_create(100, 0, nic())
    lxc.start(100, pairs={0: network.veth_create(100, 0, nic())}, net0="name=eth0,bridge=vmbr0")
    first = lxc.driver.init_pid(100)
    lxc.run(100, "reboot")
    until("another first process", lambda: lxc.driver.init_pid(100) not in (None, first))
    until("its card", lambda: "eth0" in [link.name for link in lxc.driver.interfaces(100)])
    assert list(network.taps(100)) == [0]
    lxc.driver.discard(100)
    network.tap_remove_all(100)
    assert network.remove() == []


@pytest.fixture
def host() -> Iterator[Namespace]:
    with namespace() as made:
        yield made


def test_network_cards(lxc: Lab, host: Namespace) -> None:
    livemounts.in_network(host.pid, lambda: talk(lxc, Network(lxc.driver.paths, "n1")))
