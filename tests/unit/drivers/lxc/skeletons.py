# SPDX-License-Identifier: AGPL-3.0-or-later
"""Trees with just the files by which the set-up knows a distribution and its network's reader. No real systems."""

from dataclasses import dataclass
from pathlib import Path

from orrery.drivers.lxc.setup import Setup


@dataclass(frozen=True)
class Nic:
    """A card as the model describes it, cut down to what the set-up reads."""

    name: str = "eth0"
    ip: str | None = None
    gw: str | None = None
    ip6: str | None = None
    gw6: str | None = None


SYSTEMD = {"usr/lib/systemd/systemd": "", "usr/lib/systemd/system/getty@.service": "[Unit]\n"}
NETWORKD = {
    **SYSTEMD,
    "usr/lib/systemd/systemd-networkd": "",
    "usr/lib/systemd/system/systemd-networkd.service": "",
    "usr/lib/systemd/system/systemd-networkd.socket": "",
}
ACCOUNTS = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1::/:/bin/false\n",
    "etc/shadow": "root:*:19000:0:99999:7:::\ndaemon:*:19000:0:99999:7:::\n",
}
SKELETONS: dict[str, dict[str, str]] = {
    "debian": {
        **SYSTEMD,
        "etc/os-release": 'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nID=debian\n',
        "usr/sbin/ifup": "",
        "etc/network/interfaces": "# made by the installer\nauto lo\niface lo inet loopback\n\n"
        "auto eth0\niface eth0 inet dhcp\n\tmetric 5\n",
    },
    "debian-networkd": {**NETWORKD, "usr/lib/os-release": "ID=debian\n"},
    "devuan": {
        "etc/os-release": "ID=debian\n",
        "etc/devuan_version": "beowulf\n",
        "sbin/ifup": "",
        "sbin/getty": "",
        "etc/inittab": "id:2:initdefault:\nsi::sysinit:/etc/init.d/rcS\n1:2345:respawn:/sbin/getty 38400 tty1\n"
        "5:23:respawn:/sbin/getty 38400 tty5\n",
    },
    "ubuntu": {
        **NETWORKD,
        "etc/os-release": 'NAME="Ubuntu"\nID=ubuntu\nID_LIKE=debian\n',
        "usr/sbin/netplan": "",
        "etc/netplan/10-lxc.yaml": "network: {version: 2, ethernets: {eth0: {dhcp4: true}}}\n",
    },
    "alpine": {
        "etc/os-release": "ID=alpine\nVERSION_ID=3.20.3\n",
        "sbin/ifup": "",
        "sbin/getty": "",
        "etc/init.d/networking": "",
        "etc/runlevels/boot/hostname": "",
        "etc/conf.d/hostname": 'hostname="localhost"\n',
        "etc/inittab": "::sysinit:/sbin/openrc sysinit\ntty1::respawn:/sbin/getty 38400 tty1\n"
        "tty6::respawn:/sbin/getty 38400 tty6\n",
    },
    "fedora": {**NETWORKD, "etc/os-release": "ID=fedora\nVERSION_ID=41\n", "usr/sbin/NetworkManager": ""},
    "fedora-networkd": {**NETWORKD, "etc/os-release": "ID=fedora\n"},
    "almalinux": {
        **SYSTEMD,
        "etc/os-release": 'ID="almalinux"\nID_LIKE="rhel centos fedora"\n',
        "usr/sbin/NetworkManager": "",
    },
    "rocky": {**SYSTEMD, "etc/os-release": 'ID="rocky"\nID_LIKE="rhel centos fedora"\n', "usr/sbin/NetworkManager": ""},
    "centos-7": {
        **SYSTEMD,
        "etc/redhat-release": "CentOS Linux release 7.9.2009 (Core)\n",
        "etc/sysconfig/network-scripts/ifup-eth": "",
        "etc/sysconfig/network-scripts/ifcfg-eth0": 'DEVICE=eth0\nBOOTPROTO=dhcp\nZONE="internal"\n',
        "etc/sysconfig/network-scripts/ifcfg-lo": "DEVICE=lo\n",
    },
    "arch": {**NETWORKD, "etc/os-release": "ID=arch\n"},
    "opensuse-wicked": {
        **SYSTEMD,
        "etc/os-release": 'ID="opensuse-leap"\nID_LIKE="suse opensuse"\n',
        "usr/sbin/wicked": "",
        "etc/HOSTNAME": "build\n",
        "etc/sysconfig/network/ifcfg-lo": "IPADDR=127.0.0.1/8\n",
        "etc/sysconfig/network/ifcfg-eth0": "BOOTPROTO='dhcp'\nSTARTMODE='onboot'\n",
    },
    "opensuse-nm": {
        **SYSTEMD,
        "etc/os-release": "ID=opensuse-tumbleweed\nID_LIKE=opensuse\n",
        "usr/sbin/NetworkManager": "",
    },
    "gentoo": {
        "etc/gentoo-release": "Gentoo Base System release 2.15\n",
        "etc/init.d/net.lo": "",
        "sbin/agetty": "",
        "etc/conf.d/hostname": 'hostname="localhost"\n',
        "etc/inittab": "c1:12345:respawn:/sbin/agetty 38400 tty1 linux\n"
        "c5:2345:respawn:/sbin/agetty 38400 tty5 linux\n",
    },
    "nixos": {**SYSTEMD, "etc/os-release": "ID=nixos\n", "etc/NIXOS": ""},
    "busybox": {"bin/busybox": "", "bin/sh": ""},
}
OSTYPES = {
    "debian": "debian",
    "debian-networkd": "debian",
    "devuan": "devuan",
    "ubuntu": "ubuntu",
    "alpine": "alpine",
    "fedora": "fedora",
    "fedora-networkd": "fedora",
    "almalinux": "centos",
    "rocky": "centos",
    "centos-7": "centos",
    "arch": "archlinux",
    "opensuse-wicked": "opensuse",
    "opensuse-nm": "opensuse",
    "gentoo": "gentoo",
    "nixos": "nixos",
    "busybox": "unmanaged",
}


def build(folder: Path, name: str) -> Path:
    """Lay a skeleton out below a folder."""
    for path, text in {**ACCOUNTS, **SKELETONS[name]}.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    (folder / "root").mkdir()
    return folder


def wishes(name: str, **more: object) -> Setup:
    """A set-up for a skeleton."""
    return Setup(**{"ostype": OSTYPES[name], "hostname": "web1.example.org", **more})  # type: ignore[arg-type]


def contents(folder: Path) -> dict[str, object]:
    """All of a tree, with inodes, so that a rewritten file shows."""
    return {
        str(path.relative_to(folder)): (
            path.lstat().st_ino,
            path.lstat().st_mode,
            str(path.readlink()) if path.is_symlink() else path.read_bytes() if path.is_file() else b"",
        )
        for path in sorted(folder.rglob("*"))
    }
