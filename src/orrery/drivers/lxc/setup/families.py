# SPDX-License-Identifier: AGPL-3.0-or-later
"""Families of distributions: who reads the network's configuration there, and what else carries the name.

The order of the network's readers is the order in which they are looked for in the tree: what is there counts, not the
release's number.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from orrery.drivers.lxc.setup import ifcfg, ifupdown, netifrc, netplan, networkd, networkmanager, wicked
from orrery.drivers.lxc.setup.blocks import put_block, read_text, write_text
from orrery.drivers.lxc.setup.logins import has_systemd
from orrery.drivers.lxc.setup.plan import Setup
from orrery.drivers.lxc.tree import Tree

_UNIT_FOLDERS: Final = ("/usr/lib/systemd/system", "/lib/systemd/system")
_ENABLED: Final = "/etc/systemd/system"


@dataclass(frozen=True, slots=True)
class Reader:
    """What brings the cards up: how to know it, how to write for it, and the service that must be enabled for it."""

    name: str
    present: Callable[[Tree], bool]
    write: Callable[[Tree, Setup], None]
    units: tuple[str, ...] = ()
    openrc: str | None = None


class NameKeeper(Protocol):
    """Writes the hostname where only this family looks for it."""

    def __call__(self, tree: Tree, setup: Setup) -> None: ...


@dataclass(frozen=True, slots=True)
class Family:
    """A family: its readers in the order they are preferred."""

    readers: tuple[Reader, ...]
    names: NameKeeper | None = None

    def reader(self, tree: Tree) -> Reader | None:
        """The one that this tree has."""
        return next((reader for reader in self.readers if reader.present(tree)), None)


def _has_ifupdown(tree: Tree) -> bool:
    return tree.exists("/sbin/ifup") or tree.exists("/usr/sbin/ifup")


def _openrc_hostname(tree: Tree, setup: Setup) -> None:
    if tree.is_dir("/etc/conf.d"):
        put_block(tree, "/etc/conf.d/hostname", [f'hostname="{setup.short_name}"'])


def _suse_hostname(tree: Tree, setup: Setup) -> None:
    if tree.is_file("/etc/HOSTNAME") and tree.readlink("/etc/HOSTNAME") is None:
        write_text(tree, "/etc/HOSTNAME", f"{setup.hostname}\n")


def _network_hostname(tree: Tree, setup: Setup) -> None:
    """Releases without systemd take it from /etc/sysconfig/network."""
    if not has_systemd(tree) and read_text(tree, "/etc/sysconfig/network") is not None:
        lines = ["NETWORKING=yes", f"HOSTNAME={setup.hostname}"]
        put_block(tree, "/etc/sysconfig/network", lines)


_IFUPDOWN: Final = Reader("ifupdown", _has_ifupdown, ifupdown.write, ("networking.service",), "networking")
_NETPLAN: Final = Reader("netplan", netplan.present, netplan.write)
_NETWORKD: Final = Reader(
    "systemd-networkd", networkd.present, networkd.write, ("systemd-networkd.service", "systemd-networkd.socket")
)
_NETWORK_MANAGER: Final = Reader(
    "NetworkManager", networkmanager.present, networkmanager.write, ("NetworkManager.service",)
)
_IFCFG: Final = Reader("network-scripts", ifcfg.present, ifcfg.write)
_WICKED: Final = Reader("wicked", wicked.present, wicked.write, ("wicked.service",))
_NETIFRC: Final = Reader("netifrc", netifrc.present, netifrc.write)

_DEBIAN: Final = Family((_NETPLAN, _IFUPDOWN, _NETWORK_MANAGER, _NETWORKD))
_FEDORA: Final = Family((_IFCFG, _NETWORK_MANAGER, _NETWORKD), _network_hostname)

FAMILIES: Final[dict[str, Family]] = {
    "debian": _DEBIAN,
    "devuan": _DEBIAN,
    "ubuntu": _DEBIAN,
    "alpine": Family((_IFUPDOWN,), _openrc_hostname),
    "fedora": _FEDORA,
    "centos": _FEDORA,
    "archlinux": Family((_NETWORK_MANAGER, _NETWORKD)),
    "opensuse": Family((_WICKED, _NETWORK_MANAGER, _NETWORKD), _suse_hostname),
    "gentoo": Family((_NETIFRC, _NETWORK_MANAGER, _NETWORKD), _openrc_hostname),
}
"""By `ostype`. NixOS builds its files itself, and what we do not know we leave alone: neither is here."""


def enable(tree: Tree, reader: Reader) -> None:
    """Have a new container start what reads its network's configuration, where nothing does yet."""
    if has_systemd(tree):
        for unit in reader.units:
            _enable_unit(tree, unit)
    elif reader.openrc is not None and tree.exists(f"/etc/init.d/{reader.openrc}"):
        levels = [f"/etc/runlevels/{level}/{reader.openrc}" for level in ("sysinit", "boot", "default")]
        if tree.is_dir("/etc/runlevels/boot") and not any(tree.readlink(each) for each in levels):
            tree.symlink(levels[1], f"/etc/init.d/{reader.openrc}")


def _enable_unit(tree: Tree, unit: str) -> None:
    source = next((f"{folder}/{unit}" for folder in _UNIT_FOLDERS if tree.is_file(f"{folder}/{unit}")), None)
    if source is None or tree.readlink(f"{_ENABLED}/{unit}") is not None:  # not there, or masked on purpose
        return
    folder = f"{_ENABLED}/{'sockets' if unit.endswith('.socket') else 'multi-user'}.target.wants"
    wanted = any(
        tree.readlink(f"{_ENABLED}/{each}/{unit}")
        for each in ("multi-user.target.wants", "sockets.target.wants", "network-online.target.wants")
    )
    if not wanted:
        tree.mkdir(folder)
        tree.symlink(f"{folder}/{unit}", source)
