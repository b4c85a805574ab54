# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a container sees of itself (lxcfs), and that what the set-up writes is what a real system reads."""

import os
import signal
from pathlib import Path

import pytest
from tests.lab.lxc_lab import Lab, make_tree, until

from orrery.drivers.lxc.driver import LxcDriver
from orrery.drivers.lxc.lxcfs import LxcfsService
from orrery.drivers.lxc.setup import Setup, detect, set_up
from orrery.drivers.lxc.tree import Tree
from orrery.model.container_devices import ContainerNic
from orrery.model.guest import GuestConfig
from orrery.system import cgroup, process
from orrery.system.mounts import ContainerMount, Folder
from orrery.system.paths import Paths

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]
LIMITED, DEBIAN, ALPINE = 650, 651, 652


@pytest.fixture
def lab(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("needs root")
    paths = Paths.of(tmp_path / "root")
    paths.create()
    lab = Lab(LxcDriver(paths), tmp_path)
    yield lab
    for vmid in [*lab.driver.running(), *lab.driver.leftovers()]:
        lab.driver.discard(vmid)
    LxcfsService(paths).stop()
    cgroup.remove_root(paths.root_hash)


def usr() -> ContainerMount:
    """The host's programs, to look with."""
    return ContainerMount("mp0", Folder(Path("/usr"), recursive=False), "/usr", read_only=True, mapped=False)


def with_libraries(tree: Path) -> Path:
    for name in ("lib", "lib64"):
        (tree / name).symlink_to(f"usr/{name}")
    return tree


def seen(lab: Lab) -> tuple[int, int]:
    """MiB of memory, and processors."""
    rows = [line.split() for line in lab.out(LIMITED, "/usr/bin/free -m").splitlines()]
    return int(rows[1][1]), int(lab.out(LIMITED, "grep -c ^processor /proc/cpuinfo"))


def test_a_limited_container_sees_its_limits_also_after_lxcfs_died(lab):
    service = LxcfsService(lab.driver.paths)
    service.start()
    with_libraries(lab.tree(LIMITED))
    lab.start(LIMITED, lab.folder_root(LIMITED), usr(), memory="96", swap="0", cores="1")
    assert seen(lab) == (96, 1)
    assert lab.out(LIMITED, "/usr/bin/nproc") == "1"
    assert float(lab.out(LIMITED, "cat /proc/uptime").split()[0]) < 60
    [running] = service.processes()
    process.signal(running, signal.SIGKILL)
    assert process.wait(running, 10)
    assert lab.run(LIMITED, "cat", "/proc/meminfo").returncode != 0
    first = lab.driver.init_pid(LIMITED)
    assert first is not None
    assert service.maintain([first]) == ["lxcfs was started"]
    assert seen(lab) == (96, 1)


def test_limits_show_when_they_are_changed(lab):
    LxcfsService(lab.driver.paths).start()
    with_libraries(lab.tree(LIMITED))
    lab.start(LIMITED, lab.folder_root(LIMITED), usr(), memory="96", swap="0", cores="1")
    wanted = GuestConfig(options={"memory": "160", "swap": "0", "unprivileged": "1"})
    lab.driver.apply_limits(LIMITED, wanted)
    assert seen(lab)[0] == 160


def test_busyboxs_init_and_logins_read_what_was_written(lab):
    """A tree like Alpine's, of busybox alone: names, resolver, console."""
    tree = make_tree(lab.folder / "volumes" / str(ALPINE))
    (tree / "etc/os-release").write_text("ID=alpine\n")
    (tree / "sbin/ifup").symlink_to("/bin/busybox")
    (tree / "sbin/getty").symlink_to("/bin/busybox")
    (tree / "bin/hostname").symlink_to("/bin/busybox")
    notes: list[str] = []
    with Tree(tree) as opened:
        nic = ContainerNic(index=0, name="eth0", ip="192.0.2.5/24", gw="192.0.2.1")
        wishes = Setup(detect(opened), "web1.example.org", (nic,), nameserver="192.0.2.53", fresh=True, ttys=1)
        set_up(opened, wishes, notes.append)
    assert notes == []
    lab.start(ALPINE, lab.folder_root(ALPINE), hostname="web1")
    assert lab.out(ALPINE, "/bin/busybox hostname") == "web1"
    assert "192.0.2.5 web1.example.org web1" in lab.out(ALPINE, "cat /etc/hosts")
    assert "nameserver 192.0.2.53" in lab.out(ALPINE, "cat /etc/resolv.conf")
    until("a login on console and tty1", lambda: lab.out(ALPINE, "ps").count("getty 38400") >= 2)


def system_state(lab: Lab) -> str:
    return lab.run(DEBIAN, "systemctl", "is-system-running").text.strip()


@pytest.fixture(scope="module")
def debian(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A minimal Debian 12 with systemd, built once from the host's mirror."""
    path = tmp_path_factory.mktemp("debian") / "debian.tar"
    packages = "systemd-sysv,systemd-resolved,dbus,ifupdown,iproute2,procps,openssh-server"
    command = ["mmdebstrap", "-q", "--variant=minbase", f"--include={packages}", "bookworm", str(path)]
    process.run(command, timeout=280)
    return path


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_debian_with_systemd_comes_up_as_it_was_set_up(lab, debian):
    tree = lab.folder / "volumes" / str(DEBIAN)
    tree.mkdir(parents=True)
    process.run(["tar", "-xf", str(debian), "-C", str(tree)], timeout=120)
    notes: list[str] = []
    with Tree(tree) as opened:
        assert detect(opened) == "debian"
        nic = ContainerNic(index=0, name="eth0", ip="192.0.2.5/24", gw="198.51.100.1", ip6="2001:db8::5/64")
        wishes = Setup(
            *("debian", "web1.example.org", (nic,)),
            nameserver="192.0.2.53",
            timezone="UTC",
            fresh=True,
            password_hash="$6$salt$hash",
            ssh_keys="ssh-ed25519 AAAA anna",
        )
        set_up(opened, wishes, notes.append)
    assert notes == []
    LxcfsService(lab.driver.paths).start()
    lab.start(DEBIAN, lab.folder_root(DEBIAN), hostname="web1", memory="384", ostype="debian")
    until("systemd", lambda: system_state(lab) in ("running", "degraded"), 120)
    # It has no card yet, which alone may fail.
    lab.out(DEBIAN, "ip link add eth0 type veth peer name other; ip link set other up; systemctl restart networking")
    assert lab.out(DEBIAN, "systemctl --failed --no-legend") == ""
    assert system_state(lab) == "running"
    assert lab.out(DEBIAN, "hostname; hostname -f") == "web1\nweb1.example.org"
    assert lab.out(DEBIAN, "getent ahostsv4 web1.example.org").split()[0] == "192.0.2.5"
    assert "192.0.2.53" in lab.out(DEBIAN, "cat /etc/resolv.conf; resolvectl dns 2>/dev/null || true")
    assert lab.out(DEBIAN, "cat /etc/machine-id") == (tree / "etc/machine-id").read_text().strip()
    assert "root:$6$salt$hash:" in lab.out(DEBIAN, "getent shadow root")
    assert (
        lab.out(DEBIAN, "sshd -t; systemctl is-active ssh console-getty getty@tty1 getty@tty2").split()
        == ["active"] * 4
    )
    addresses = lab.out(DEBIAN, "ip -o addr show eth0")
    assert "192.0.2.5/24" in addresses
    assert "2001:db8::5/64" in addresses
    assert "default via 198.51.100.1 dev eth0" in lab.out(DEBIAN, "ip route")
    assert "MemTotal:         393216 kB" in lab.out(DEBIAN, "cat /proc/meminfo")
    # Groups of its own below its own: what Docker and systemd need.
    lab.out(DEBIAN, "cd /sys/fs/cgroup; [ ! -d memory ] || cd memory; mkdir inner; echo $$ >inner/cgroup.procs")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_networkd_of_debian_reads_what_was_written(lab, debian):
    tree = lab.folder / "volumes" / str(DEBIAN)
    tree.mkdir(parents=True)
    process.run(["tar", "-xf", str(debian), "-C", str(tree)], timeout=120)
    for name in ("sbin/ifup", "usr/sbin/ifup"):
        (tree / name).unlink(missing_ok=True)
    with Tree(tree) as opened:
        nic = ContainerNic(index=0, name="eth0", ip="192.0.2.5/32", gw="198.51.100.1", ip6="2001:db8::5/64")
        set_up(opened, Setup("debian", "web1", (nic,), fresh=True, nameserver="192.0.2.53"), pytest.fail)
    lab.start(DEBIAN, lab.folder_root(DEBIAN), hostname="web1", memory="384", ostype="debian")
    until(
        "systemd", lambda: lab.run(DEBIAN, "systemctl", "is-active", "systemd-networkd").text.strip() == "active", 120
    )
    lab.out(DEBIAN, "ip link add eth0 type veth peer name other; ip link set other up")
    until("the address", lambda: "192.0.2.5/32" in lab.out(DEBIAN, "ip -o addr show eth0"), 60)
    until("the route", lambda: "default via 198.51.100.1 dev eth0" in lab.out(DEBIAN, "ip route"), 60)
    assert "2001:db8::5/64" in lab.out(DEBIAN, "ip -o addr show eth0")


NESTED_PROC = "/usr/bin/unshare --user --map-root-user --pid --fork --mount-proc /bin/ls /proc >/dev/null"
OVERLAY = "mkdir -p /a /b /c /d; /usr/bin/mount -t overlay o -o lowerdir=/a,upperdir=/b,workdir=/c /d && umount /d"


@pytest.mark.parametrize("nesting", ["0", "1"])
def test_what_containers_inside_need(lab, nesting):
    """Own user, pid and mount namespaces, and overlays; a /proc of their own in a user namespace takes `nesting`."""
    with_libraries(lab.tree(LIMITED))
    lab.start(LIMITED, lab.folder_root(LIMITED), usr(), features=f"nesting={nesting}")
    lab.out(LIMITED, "/usr/bin/unshare --user --map-root-user /bin/true")
    lab.out(LIMITED, "/usr/bin/unshare --pid --fork --mount-proc /bin/true")
    lab.out(LIMITED, OVERLAY)
    done = lab.run(LIMITED, "sh", "-c", NESTED_PROC)
    assert (done.returncode == 0) == (nesting == "1"), done
