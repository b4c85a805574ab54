# SPDX-License-Identifier: AGPL-3.0-or-later
"""A watchdog card: does something to a guest that stops feeding it."""

from orrery.drivers.qemu.devices.parts import Context, Parts, Properties
from orrery.model.devices import Watchdog


def args(watchdog: Watchdog, context: Context) -> Parts:
    """The card and its action."""
    device: Properties = {"driver": watchdog.model, "id": "watchdog"}
    if watchdog.model == "i6300esb":
        device |= context.layout.place("watchdog")
    options = ["-action", f"watchdog={watchdog.action}"] if watchdog.action else []
    return Parts(options=options, devices=[device])
