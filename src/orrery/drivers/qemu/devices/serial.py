# SPDX-License-Identifier: AGPL-3.0-or-later
"""Serial ports: a socket that consoles connect to, or a device of the host."""

from pathlib import Path

from orrery.drivers.qemu.devices.parts import Context, Parts
from orrery.model.devices import Serial


def socket_name(index: int) -> str:
    """Name of a serial port's socket in the machine's run folder."""
    return f"serial{index}"


def args(serial: Serial, context: Context) -> Parts:
    """One serial port."""
    name = socket_name(serial.index)
    if serial.device is None:
        chardev = f"socket,id={name},fd={context.sources.socket(name)},server=on,wait=off"
    else:
        file = context.sources.file(Path(serial.device), writable=True, label=name)
        chardev = f"serial,id={name},path={file}"
    device = {"driver": "isa-serial", "id": name, "chardev": name, "index": serial.index}
    return Parts(chardevs=[chardev], devices=[device])
