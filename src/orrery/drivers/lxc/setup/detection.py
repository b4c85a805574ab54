# SPDX-License-Identifier: AGPL-3.0-or-later
"""Which distribution a tree holds: os-release(5), and what older ones left as files."""

import shlex
from contextlib import suppress
from typing import Final

from orrery.drivers.lxc.setup.blocks import read_text
from orrery.drivers.lxc.tree import Tree
from orrery.errors import OrreryError

_BY_ID: Final = {
    **{name: name for name in ("alpine", "debian", "devuan", "fedora", "gentoo", "nixos", "ubuntu")},
    **dict.fromkeys(("arch", "archlinux", "archarm", "manjaro"), "archlinux"),
    **dict.fromkeys(("centos", "almalinux", "rocky", "rhel", "ol", "amzn", "cloudlinux"), "centos"),
    **dict.fromkeys(("opensuse", "opensuse-leap", "opensuse-tumbleweed", "sles", "sled", "suse"), "opensuse"),
    **dict.fromkeys(("raspbian", "kali"), "debian"),
}
# The more telling one first: derivatives carry their parent's files too.
_BY_FILE: Final = (
    ("/etc/NIXOS", "nixos"),
    ("/etc/alpine-release", "alpine"),
    ("/etc/devuan_version", "devuan"),
    ("/etc/arch-release", "archlinux"),
    ("/etc/gentoo-release", "gentoo"),
    ("/etc/SuSE-release", "opensuse"),
    ("/etc/SUSE-brand", "opensuse"),
    ("/etc/fedora-release", "fedora"),
    ("/etc/centos-release", "centos"),
    ("/etc/redhat-release", "centos"),
    ("/etc/debian_version", "debian"),
)
UNMANAGED: Final = "unmanaged"


def detect(tree: Tree) -> str:
    """The `ostype` of a tree; `unmanaged` when nothing known is found. Never raises for what the files say."""
    for path in ("/etc/os-release", "/usr/lib/os-release"):
        with suppress(OrreryError):
            found = _from_os_release(read_text(tree, path) or "")
            if found is not None:
                # Devuan's releases before 4 call themselves Debian.
                return "devuan" if found == "debian" and tree.exists("/etc/devuan_version") else found
    if "DISTRIB_ID=Ubuntu" in _quiet(tree, "/etc/lsb-release"):
        return "ubuntu"
    return next((ostype for path, ostype in _BY_FILE if tree.exists(path)), UNMANAGED)


def _quiet(tree: Tree, path: str) -> str:
    with suppress(OrreryError):
        return read_text(tree, path) or ""
    return ""


def _from_os_release(text: str) -> str | None:
    values: dict[str, str] = {}
    for line in text.splitlines():
        key, equals, value = line.partition("=")
        if equals and key.strip() in ("ID", "ID_LIKE"):
            with suppress(ValueError):
                values[key.strip()] = " ".join(shlex.split(value))
    names = [values.get("ID", ""), *values.get("ID_LIKE", "").split()]
    return next((_BY_ID[name.lower()] for name in names if name.lower() in _BY_ID), None)
