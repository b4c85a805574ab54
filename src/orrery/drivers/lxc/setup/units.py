# SPDX-License-Identifier: AGPL-3.0-or-later
"""Units of systemd that cannot work in an unprivileged container: masked in a new one, where the tree has them."""

from typing import Final

from orrery.drivers.lxc.tree import Tree

_FOLDERS: Final = ("/usr/lib/systemd/system", "/lib/systemd/system")
_ADMINISTRATOR: Final = "/etc/systemd/system"

HOPELESS: Final = ("systemd-journald-audit.socket",)
"""What fails at every boot: the kernel's audit log belongs to the host."""


def mask_hopeless(tree: Tree) -> None:
    """Mask them, unless the administrator of the template said something about them."""
    for unit in HOPELESS:
        place = f"{_ADMINISTRATOR}/{unit}"
        there = any(tree.exists(f"{folder}/{unit}") for folder in _FOLDERS)
        if there and tree.readlink(place) is None and not tree.exists(place):
            tree.mkdir(_ADMINISTRATOR)
            tree.symlink(place, "/dev/null")
