# SPDX-License-Identifier: AGPL-3.0-or-later
"""What is written inside a container: before every start, and once more when it is new."""

from collections.abc import Callable
from pathlib import Path

from orrery.drivers.lxc.setup import Setup, set_up
from orrery.drivers.lxc.tree import Tree
from orrery.model.container_devices import container_view
from orrery.model.guest import GuestConfig
from orrery.operations.container_mounts import SETUP_PLACES, mounted, own_mounts
from orrery.operations.context import NodeContext
from orrery.tasks.operation import TaskHandle

UNMANAGED = "unmanaged"


def wishes(
    vmid: int, config: GuestConfig, *, fresh: bool = False, password_hash: str | None = None, keys: str | None = None
) -> Setup:
    """What a container's inside shall be like. `fresh`, password and keys are for one that was just made."""
    view = container_view(config)
    return Setup(
        ostype=view.ostype or UNMANAGED,
        hostname=view.hostname or f"CT{vmid}",
        nics=view.nics,
        nameserver=config.options.get("nameserver"),
        searchdomain=config.options.get("searchdomain"),
        timezone=view.timezone,
        ttys=view.tty,
        console=view.console,
        unprivileged=view.unprivileged,
        fresh=fresh,
        password_hash=password_hash,
        ssh_keys=keys,
    )


def write_inside(root: Path, setup: Setup, log: Callable[[str], None]) -> None:
    """Writes it into a tree that is mounted. Raises `Failure` for passwords and keys that cannot be written."""
    with Tree(root) as tree:
        set_up(tree, setup, log)


def prepare_inside(ctx: NodeContext, task: TaskHandle, vmid: int, config: GuestConfig) -> None:
    """Brings the inside of a container that is about to start in line with its configuration."""
    setup = wishes(vmid, config)
    if setup.ostype == UNMANAGED:
        return
    with mounted(ctx, own_mounts(ctx, config.options, SETUP_PLACES)) as root:
        write_inside(root, setup, task.warn)
