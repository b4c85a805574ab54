# SPDX-License-Identifier: AGPL-3.0-or-later
"""Locks of guests: the short one that a task holds while it works, the long one that stands in the configuration."""

from orrery.errors import Locked
from orrery.model.guest import GuestConfig

NOUNS = {"qemu": "VM", "lxc": "CT"}


def guest_lock(vmid: int) -> str:
    """Name of the task lock of a guest."""
    return f"guest/{vmid}"


def check_lock(config: GuestConfig, *, kind: str = "qemu", skip: bool = False) -> None:
    """Raises `Locked` when the configuration carries a lock, unless it is to be skipped (root alone may ask that)."""
    lock = config.options.get("lock")
    if lock and not skip:
        raise Locked(f"{NOUNS[kind]} is locked ({lock})")
