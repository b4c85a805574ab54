# SPDX-License-Identifier: AGPL-3.0-or-later
"""What of a change takes effect on a running container: limits, network cards, mount points, devices."""

from collections.abc import Callable

from orrery.errors import Failure, OrreryError
from orrery.model.container_devices import ContainerNic, parse_device, parse_mount, parse_nic
from orrery.model.container_options import CONTAINER_OPTIONS
from orrery.model.container_properties import CONTAINER_NIC
from orrery.model.guest import GuestConfig
from orrery.operations.container_mounts import container_mount
from orrery.operations.context import NodeContext
from orrery.tasks.operation import TaskHandle

HOST_SIDE = frozenset(("bridge", "tag", "trunks", "rate", "firewall", "link_down"))
"""Properties of a card that concern the host's end alone."""


def apply_live(
    ctx: NodeContext, task: TaskHandle, vmid: int, config: GuestConfig, after: GuestConfig, key: str
) -> bool:
    """Whether the change of `key` from `config` to `after` has taken effect; False when it needs the next start.

    Raises why a change that is possible while the container runs failed; then nothing of it has taken effect.
    """
    old, new = config.options.get(key), after.options.get(key)
    option = CONTAINER_OPTIONS.find(key)
    if old == new or option is None or option.hotplug == "stored":
        return True
    match option.hotplug:
        case "live":
            for warning in ctx.containers.apply_limits(vmid, after):
                task.log(f"warning: {warning}")
            return True
        case "nic":
            done = change_card(ctx, vmid, key, old, new)
        case "disk":
            done = change_mount(ctx, vmid, key, old, new)
        case "device":
            done = change_device(ctx, vmid, old, new)
        case _:
            done = False
    if done:
        task.log(f"{key}: changed while the container runs")
    return done


def change_card(ctx: NodeContext, vmid: int, key: str, old: str | None, new: str | None) -> bool:
    """Plugs, unplugs or replaces a network card, or changes its host's end."""
    index = (CONTAINER_OPTIONS.expand(key) or ("net", 0))[1]
    if old is None and new is not None:
        plug_card(ctx, vmid, parse_nic(new, index))
    elif new is None and old is not None:
        unplug_card(ctx, vmid, parse_nic(old, index))
    elif old is not None and new is not None:
        before, after = CONTAINER_NIC.parse(old, key), CONTAINER_NIC.parse(new, key)
        changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
        if changed <= HOST_SIDE:
            ctx.network.veth_reconnect(vmid, index, parse_nic(new, index))
        else:
            unplug_card(ctx, vmid, parse_nic(old, index))
            put_back_on_failure(
                lambda: plug_card(ctx, vmid, parse_nic(new, index)),
                lambda: plug_card(ctx, vmid, parse_nic(old, index)),
            )
    return True


def plug_card(ctx: NodeContext, vmid: int, nic: ContainerNic) -> None:
    """Makes a card's pair and hands one end to the container; a failure leaves neither."""
    veth = ctx.network.veth_create(vmid, nic.index, nic)
    try:
        ctx.containers.attach_nic(vmid, nic, veth)
    except BaseException:
        ctx.network.tap_remove(vmid, nic.index)
        raise


def unplug_card(ctx: NodeContext, vmid: int, nic: ContainerNic) -> None:
    """Removes a card's pair: with the host's end goes the other."""
    ctx.containers.detach_nic(vmid, nic)
    ctx.network.tap_remove(vmid, nic.index)


def change_mount(ctx: NodeContext, vmid: int, key: str, old: str | None, new: str | None) -> bool:
    """Mounts or unmounts a mount point. One that is replaced by another volume or place is unmounted first."""
    before = None if old is None else container_mount(ctx, parse_mount(key, old))
    after = None if new is None else container_mount(ctx, parse_mount(key, new))
    if before == after:  # backups and sizes are other people's affair
        return True
    if before is not None:
        ctx.containers.detach_mount(vmid, before)
    if after is not None:
        put_back_on_failure(
            lambda: ctx.containers.attach_mount(vmid, after),
            lambda: None if before is None else ctx.containers.attach_mount(vmid, before),
        )
    return True


def change_device(ctx: NodeContext, vmid: int, old: str | None, new: str | None) -> bool:
    """Shows another device of the host. One that is to go stays until the next start."""
    if old is not None or new is None:
        return False
    ctx.containers.attach_device(vmid, parse_device(new))
    return True


def put_back_on_failure(plug: Callable[[], None], plug_old: Callable[[], None]) -> None:
    """Gives the container back what was taken out to make room for something that it does not take."""
    try:
        plug()
    except OrreryError as error:
        try:
            plug_old()
        except OrreryError as second:
            raise Failure(
                f"{error.message}; and what was there before could not be put back: {second.message}"
            ) from error
        raise
