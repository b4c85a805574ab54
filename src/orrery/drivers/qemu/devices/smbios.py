# SPDX-License-Identifier: AGPL-3.0-or-later
"""What the machine says about itself: identity in SMBIOS tables, and the generation id that marks copies."""

from typing import Final

from orrery.drivers.qemu.devices.parts import Context, Parts

_FIELDS: Final = ("manufacturer", "product", "version", "serial", "sku", "family")


def args(context: Context) -> Parts:
    """Option `-smbios` and the device vmgenid."""
    smbios = context.view.smbios
    values = {"uuid": smbios.uuid, **{name: smbios.fields.get(name) for name in _FIELDS}}
    # In such an option a comma is written twice.
    given = [f"{name}={value.replace(',', ',,')}" for name, value in values.items() if value]
    parts = Parts(options=["-smbios", ",".join(["type=1", *given])] if given else [])
    generation = context.view.vmgenid
    if generation not in (None, "0"):
        guid = "auto" if generation == "1" else generation
        parts.devices.append({"driver": "vmgenid", "id": "vmgenid", "guid": guid})
    return parts
