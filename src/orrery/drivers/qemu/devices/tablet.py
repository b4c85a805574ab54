# SPDX-License-Identifier: AGPL-3.0-or-later
"""A USB tablet: a pointer with absolute positions, which a screen in a browser needs."""

from orrery.drivers.qemu.devices import vga
from orrery.drivers.qemu.devices.parts import Context, Parts


def args(context: Context) -> Parts:
    """The tablet and its USB controller, for machines with a screen."""
    if not context.view.tablet or not vga.has_screen(context):
        return Parts()
    return Parts(
        devices=[
            {"driver": "piix3-usb-uhci", "id": "uhci", **context.layout.place("usb")},
            {"driver": "usb-tablet", "id": "tablet", "bus": "uhci.0", "port": "1"},
        ]
    )
