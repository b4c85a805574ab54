# SPDX-License-Identifier: AGPL-3.0-or-later
"""A source of entropy for the guest."""

from pathlib import Path

from orrery.drivers.qemu.devices.parts import Context, Parts, Properties
from orrery.model.devices import Rng


def args(rng: Rng, context: Context) -> Parts:
    """The device and its source on the host."""
    source = context.sources.file(Path(rng.source), writable=False, label="rng0")
    device: Properties = {
        "driver": "virtio-rng-pci",
        "id": "rng0",
        "rng": "rng0-source",
        **context.layout.place("rng0"),
    }
    if rng.max_bytes:
        device |= {"max-bytes": rng.max_bytes, "period": rng.period}
    return Parts(
        objects=[{"qom-type": "rng-random", "id": "rng0-source", "filename": source}],
        devices=[device],
    )
