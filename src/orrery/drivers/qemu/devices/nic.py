# SPDX-License-Identifier: AGPL-3.0-or-later
"""Network cards. Their taps are made and opened by whoever knows the network; here they are descriptors."""

from typing import Final

from orrery.drivers.qemu.devices.parts import Context, Parts, Properties
from orrery.drivers.qemu.plan import Command
from orrery.errors import Failure
from orrery.model.devices import Nic

_DRIVERS: Final = {"virtio": "virtio-net-pci", "e1000-82540em": "e1000"}
_EXPRESS: Final = ("virtio", "e1000e", "vmxnet3")
_RECEIVE_QUEUE: Final = 1024  # packets; the default of 256 drops bursts


def is_legacy(nic: Nic) -> bool:
    """Whether the model is a PCI card, which on q35 sits behind a bridge."""
    return nic.model not in (*_EXPRESS, "ne2k_isa")


def name_of(nic: Nic) -> str:
    """Id of the card and of its back end."""
    return f"net{nic.index}"


def args(nic: Nic, context: Context) -> Parts:
    """A card and its back end."""
    name = name_of(nic)
    tap = context.taps.get(nic.index)
    parts = Parts()
    if tap is None:
        # A card needs a counterpart to be more than a warning; a hub without other ports goes nowhere.
        parts.netdevs.append({"type": "hubport", "id": name, "hubid": nic.index})
        parts.notes.append(f"{name} is connected to no bridge")
    else:
        vhost = {"vhost": True} if tap.vhost else {}
        parts.netdevs.append({"type": "tap", "id": name, **context.sources.tap(name, tap), **vhost})
    parts.devices.append(_device(nic, context, len(tap.fds) if tap else 1))
    if nic.link_down:
        parts.commands.append(link(nic))
    return parts


def link(nic: Nic) -> Command:
    """The command that plugs or pulls the card's cable."""
    return Command("set_link", {"name": name_of(nic), "up": not nic.link_down})


def _device(nic: Nic, context: Context, queues: int) -> Properties:
    name = name_of(nic)
    device: Properties = {"driver": _DRIVERS.get(nic.model, nic.model), "id": name, "netdev": name}
    if nic.mac is None:
        raise Failure(f"'{name}' has no MAC address")
    device["mac"] = nic.mac
    if nic.model == "ne2k_isa":
        return device
    device |= context.layout.place(name, legacy=is_legacy(nic))
    if nic.model == "virtio":
        device["rx_queue_size"] = _RECEIVE_QUEUE
        if queues > 1:
            device |= {"mq": True, "vectors": 2 * queues + 2}
        tap = context.taps.get(nic.index)
        if tap is not None and tap.mtu is not None:
            device["host_mtu"] = tap.mtu
    boot = context.bootindex(name)
    # Without a boot ROM a card that is not booted from takes no time at start.
    return {**device, **(boot or {"romfile": ""})}
