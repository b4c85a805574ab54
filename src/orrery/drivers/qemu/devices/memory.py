# SPDX-License-Identifier: AGPL-3.0-or-later
"""Memory, its division among NUMA nodes, and the balloon that takes some of it back."""

from orrery.drivers.qemu.devices.parts import Context, Parts
from orrery.drivers.qemu.plan import Command

STATISTICS_SECONDS = 5
"""How often a guest with a balloon is asked to tell how its memory is used."""

BALLOON = "balloon0"


def args(context: Context) -> Parts:
    """Option `-m`, NUMA nodes if wanted, and the balloon unless it was switched off."""
    view = context.view
    parts = Parts(options=["-m", f"size={view.memory}M"])
    if view.topology.numa:
        parts.add(_nodes(context))
    if view.balloon != 0:
        parts.devices.append(
            {
                "driver": "virtio-balloon-pci",
                "id": BALLOON,
                **context.layout.place(BALLOON),
                "free-page-reporting": True,
            }
        )
        parts.commands.append(
            Command(
                "qom-set",
                {
                    "path": f"/machine/peripheral/{BALLOON}",
                    "property": "guest-stats-polling-interval",
                    "value": STATISTICS_SECONDS,
                },
            )
        )
        if view.balloon is not None and view.shares == 0:
            parts.commands.append(Command("balloon", {"value": view.balloon << 20}))
    return parts


def _nodes(context: Context) -> Parts:
    """One node per socket, with an equal share of memory; the first takes what cannot be divided."""
    topology = context.view.topology
    share, rest = divmod(context.view.memory, topology.sockets)
    parts = Parts()
    for node in range(topology.sockets):
        size = share + (rest if node == 0 else 0)
        first = node * topology.cores
        parts.objects.append({"qom-type": "memory-backend-ram", "id": f"ram{node}", "size": size << 20})
        cpus = f"{first}-{first + topology.cores - 1}" if topology.cores > 1 else str(first)
        parts.options += ["-numa", f"node,nodeid={node},cpus={cpus},memdev=ram{node}"]
    return parts
