# SPDX-License-Identifier: AGPL-3.0-or-later
"""The channel to the agent inside the guest."""

from typing import Final

from orrery.drivers.qemu.devices.parts import Context, Parts, Properties
from orrery.drivers.qemu.plan import AGENT_SOCKET
from orrery.errors import Failure
from orrery.model.devices import Agent

_PORT: Final = "org.qemu.guest_agent.0"
_BUS: Final = "serialbus"
_ISA_PORTS: Final = 4


def args(agent: Agent, context: Context) -> Parts:
    """The channel, if the agent is enabled: a virtio port, or a serial port for guests without virtio."""
    if not agent.enabled:
        return Parts()
    chardev = f"socket,id=agent0,fd={context.sources.socket(AGENT_SOCKET)},server=on,wait=off"
    if agent.type == "isa":
        used = {serial.index for serial in context.view.serials}
        free = [index for index in range(_ISA_PORTS) if index not in used]
        if not free:
            raise Failure("an agent of type isa needs a free serial port; the machine uses all four")
        devices: list[Properties] = [
            {"driver": "isa-serial", "id": "agent0", "chardev": "agent0", "index": free[0]},
        ]
    else:
        devices = [
            {"driver": "virtio-serial-pci", "id": _BUS, **context.layout.place(_BUS)},
            {"driver": "virtserialport", "id": "agent0", "bus": f"{_BUS}.0", "chardev": "agent0", "name": _PORT},
        ]
    return Parts(chardevs=[chardev], devices=devices)
