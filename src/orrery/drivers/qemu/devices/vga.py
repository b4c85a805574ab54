# SPDX-License-Identifier: AGPL-3.0-or-later
"""The display. It listens nowhere: a viewer's connection is handed over as a descriptor when there is one."""

from typing import Final

from orrery.drivers.qemu.devices.parts import Context, Parts, Properties
from orrery.errors import Failure

_DRIVERS: Final = {
    "std": "VGA",
    "cirrus": "cirrus-vga",
    "vmware": "vmware-svga",
    "virtio": "virtio-vga",
    "qxl": "qxl-vga",
}
_MEMORY: Final = {"std": "vgamem_mb", "cirrus": "vgamem_mb", "vmware": "vgamem_mb", "qxl": "vgamem_mb"}


def has_screen(context: Context) -> bool:
    """Whether there is a graphical display."""
    kind = context.view.vga.type
    return kind != "none" and not kind.startswith("serial")


def args(context: Context) -> Parts:
    """The graphics card, if any."""
    vga = context.view.vga
    if vga.type.startswith("serial") and int(vga.type[6:]) not in {each.index for each in context.view.serials}:
        raise Failure(f"the display is '{vga.type}', but the machine has no such serial port")
    if not has_screen(context):
        return Parts(options=["-display", "none"])
    driver = _DRIVERS.get(vga.type)
    if driver is None:
        raise Failure(f"display '{vga.type}' is not supported")
    device: Properties = {"driver": driver, "id": "vga", **context.layout.place("vga")}
    if vga.memory is not None:
        device |= {"max_hostmem": vga.memory << 20} if vga.type == "virtio" else {_MEMORY[vga.type]: vga.memory}
    keyboard = ["-k", context.view.keyboard] if context.view.keyboard else []
    # `-vnc none` makes the server to which connections are handed over; it opens no port and no socket.
    return Parts(options=["-display", "none", "-vnc", "none", *keyboard], devices=[device])
