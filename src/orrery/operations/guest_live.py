# SPDX-License-Identifier: AGPL-3.0-or-later
"""What of a change takes effect on a running machine: its devices are plugged, unplugged or told."""

from contextlib import closing

from orrery.drivers.qemu.commandline import resources
from orrery.drivers.qemu.live import LiveMachine
from orrery.drivers.qemu.plan import TapFds
from orrery.model.devices import Nic, machine_devices, parse_nic
from orrery.model.disks import parse_disk
from orrery.model.guest import GuestConfig
from orrery.model.machine import expand_indexed, is_disk
from orrery.model.machine_changes import Change, change_of, hotplug_features
from orrery.operations.context import NodeContext
from orrery.operations.drives import parse_drive, volume_file
from orrery.operations.guest_pending import put_back_on_failure
from orrery.tasks.operation import TaskHandle


def apply_live(
    ctx: NodeContext, task: TaskHandle, vmid: int, config: GuestConfig, after: GuestConfig, key: str
) -> bool:
    """Whether the change of `key` from `config` to `after` has taken effect; False when it needs the next start.

    Raises why a change that is possible while the machine runs failed; then nothing of it has taken effect.
    """
    old, new = config.options.get(key), after.options.get(key)
    change = change_of(key, old, new, hotplug_features(config.options))
    if change in ("none", "stored"):
        return True
    if change == "restart":
        return False
    if change == "live" and key not in ("balloon", "shares"):
        for warning in ctx.machines.limit(vmid, resources(machine_devices(after))):
            task.log(f"warning: {warning}")
        return True
    with ctx.machines.live(vmid, config) as live:
        if key in ("balloon", "shares"):
            if machine_devices(after).balloon != 0:
                live.fit_balloon(machine_devices(after))
        elif is_disk(key):
            change_disk(ctx, live, change, key, old, new)
        else:
            change_card(ctx, live, vmid, change, key, old, new)
    task.log(f"{key}: {change} done")
    return True


def change_disk(
    ctx: NodeContext, live: LiveMachine, change: Change, key: str, old: str | None, new: str | None
) -> None:
    """Plugs, unplugs or replaces a disk, changes its medium or its rates."""
    if change in ("unplug", "replace") and old is not None:
        live.unplug_disk(parse_disk(key, old))
    if new is None:
        return
    drive = parse_disk(key, new)
    if change in ("plug", "replace"):
        with put_back_on_failure(lambda: change_disk(ctx, live, "plug", key, None, old)):
            live.plug_disk(drive, volume_file(ctx, parse_drive(key, new)))
    elif change == "media":
        live.change_medium(drive, volume_file(ctx, parse_drive(key, new)))
    elif change == "throttle":
        live.set_throttle(drive)


def change_card(
    ctx: NodeContext, live: LiveMachine, vmid: int, change: Change, key: str, old: str | None, new: str | None
) -> None:
    """Plugs, unplugs or replaces a network card, or moves its cable."""
    index = (expand_indexed(key) or ("net", 0))[1]
    if change in ("unplug", "replace") and old is not None:
        live.unplug_nic(parse_nic(old, index))
        ctx.network.tap_remove(vmid, index)
    if new is None:
        return
    card = parse_nic(new, index)
    if change in ("plug", "replace"):
        with put_back_on_failure(lambda: change_card(ctx, live, vmid, "plug", key, None, old)):
            plug_card(ctx, live, vmid, card)
    else:
        ctx.network.tap_reconnect(vmid, index, card)
        live.set_link(card)


def plug_card(ctx: NodeContext, live: LiveMachine, vmid: int, card: Nic) -> None:
    """Makes the card's tap and plugs the card; a failure leaves neither."""
    tap = ctx.network.tap_create(vmid, card.index, card)
    with closing(tap):
        live.plug_nic(card, TapFds(tap.fds, tap.vhost, tap.mtu))
