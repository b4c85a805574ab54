# SPDX-License-Identifier: AGPL-3.0-or-later
"""What of a change takes effect on a running container: limits, network cards, mount points, devices."""

from dataclasses import replace

from orrery.model.container_devices import ContainerNic, parse_device, parse_mount, parse_nic
from orrery.model.container_options import CONTAINER_OPTIONS
from orrery.model.guest import GuestConfig
from orrery.operations.container_mounts import container_mount
from orrery.operations.context import NodeContext
from orrery.operations.guest_pending import put_back_on_failure
from orrery.tasks.operation import TaskHandle


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
    """Plugs, unplugs or replaces a network card, or changes its host's end; False when it needs the next start."""
    index = (CONTAINER_OPTIONS.expand(key) or ("net", 0))[1]
    before = None if old is None else parse_nic(old, index)
    after = None if new is None else parse_nic(new, index)
    if before is not None and after is not None:
        if same_inside(before, after):
            ctx.network.veth_reconnect(vmid, index, after)
            return True
        if "dhcp" in (before.ip, before.ip6, after.ip, after.ip6) or "auto" in (before.ip6, after.ip6):
            return False  # the system inside holds the address
    if before is not None:
        unplug_card(ctx, vmid, before)
    if after is not None:
        with put_back_on_failure(lambda: None if before is None else plug_card(ctx, vmid, before)):
            plug_card(ctx, vmid, after)
    return True


def same_inside(before: ContainerNic, after: ContainerNic) -> bool:
    """Whether two cards are the same as the container sees them: only the host's end differs."""
    like_before = replace(
        after,
        bridge=before.bridge,
        tag=before.tag,
        trunks=before.trunks,
        rate=before.rate,
        firewall=before.firewall,
        link_down=before.link_down,
    )
    return like_before == before


def plug_card(ctx: NodeContext, vmid: int, nic: ContainerNic) -> None:
    """Makes a card's pair and hands one end to the container, with its fixed addresses; a failure leaves neither."""
    veth = ctx.network.veth_create(vmid, nic.index, nic)
    try:
        ctx.containers.attach_nic(vmid, veth, nic.name)
        addresses = [each for each in (nic.ip, nic.ip6) if each is not None and "/" in each]
        gateways = [each for each in (nic.gw, nic.gw6) if each is not None]
        ctx.containers.address_nic(vmid, nic.name, addresses, gateways)
    except BaseException:
        ctx.network.tap_remove(vmid, nic.index)
        raise


def unplug_card(ctx: NodeContext, vmid: int, nic: ContainerNic) -> None:
    """Removes both ends of a card's pair."""
    ctx.containers.detach_nic(vmid, nic.name)
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
        with put_back_on_failure(lambda: None if before is None else ctx.containers.attach_mount(vmid, before)):
            ctx.containers.attach_mount(vmid, after)
    return True


def change_device(ctx: NodeContext, vmid: int, old: str | None, new: str | None) -> bool:
    """Shows another device of the host, or takes one away."""
    if old is not None:
        ctx.containers.detach_device(vmid, parse_device(old))
    if new is not None:
        with put_back_on_failure(
            lambda: None if old is None else ctx.containers.attach_device(vmid, parse_device(old))
        ):
            ctx.containers.attach_device(vmid, parse_device(new))
    return True
