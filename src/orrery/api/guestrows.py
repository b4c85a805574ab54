# SPDX-License-Identifier: AGPL-3.0-or-later
"""Rows of guests as lists show them."""

from typing import Any

import orjson

from orrery.metrics.collect import GuestSample
from orrery.metrics.facts import GuestFacts


def status_row(guest: GuestFacts, sample: GuestSample | None) -> dict[str, Any]:
    """What every list of guests says; what is not known is left out. Rates are totals in bytes since the start."""
    row: dict[str, Any] = {
        "vmid": guest.vmid,
        "name": guest.name,
        "status": "running" if sample else "stopped",
        "maxmem": guest.maxmem,
        "maxdisk": guest.maxdisk,
        "cpu": sample.cpu if sample else 0,
        "mem": sample.mem if sample else 0,
        "disk": sample.disk if sample else 0,
        "uptime": sample.uptime if sample else 0,
        "netin": sample.netin if sample else 0,
        "netout": sample.netout if sample else 0,
        "diskread": sample.diskread if sample else 0,
        "diskwrite": sample.diskwrite if sample else 0,
    }
    if sample and guest.kind == "qemu":
        row["memhost"] = sample.memhost
    if guest.tags:
        row["tags"] = guest.tags
    if guest.lock:
        row["lock"] = guest.lock
    return row


def list_row(guest: GuestFacts, sample: GuestSample | None, *, full: bool = True) -> dict[str, Any]:
    """A row of a node's list of machines, also the base of a machine's own status."""
    row = status_row(guest, sample) | {"cpus": guest.maxcpu}
    if guest.template:
        row["template"] = 1
    if sample:
        row["pid"] = sample.pid
        if full:
            row["qmpstatus"] = sample.qmpstatus
            row |= sample.version
    elif full:
        row["qmpstatus"] = "stopped"
    return row


def container_row(guest: GuestFacts, sample: GuestSample | None) -> dict[str, Any]:
    """A row of a node's list of containers, also a container's own status."""
    row = status_row(guest, sample) | {"type": guest.kind, "cpus": guest.maxcpu, "maxswap": guest.maxswap}
    row["swap"] = sample.swap if sample else 0
    if guest.template:
        row["template"] = 1
    if sample:
        row["pid"] = sample.pid
    return row


def resource_row(guest: GuestFacts, sample: GuestSample | None, pool: str | None) -> dict[str, Any]:
    """A row of the cluster's resources."""
    row = status_row(guest, sample) | {
        "id": f"{guest.kind}/{guest.vmid}",
        "type": guest.kind,
        "node": guest.node,
        "maxcpu": guest.maxcpu,
        "template": int(guest.template),
    }
    if pool is not None:
        row["pool"] = pool
    return row


class RestingRows:
    """Rows of guests that do not run, as JSON: they change with their configuration or pool alone, and are most.

    Safe for threads: a row that two of them make at once is the same row.
    """

    def __init__(self) -> None:
        self._rows: dict[int, tuple[GuestFacts, str | None, orjson.Fragment]] = {}

    def row(self, guest: GuestFacts, pool: str | None) -> orjson.Fragment:
        """The row of the cluster's resources."""
        known = self._rows.get(guest.vmid)
        if known is not None and known[0] is guest and known[1] == pool:
            return known[2]
        # Copied, since what dumps() gives keeps the kilobytes of room that it wrote into.
        row = orjson.Fragment(bytes(memoryview(orjson.dumps(resource_row(guest, None, pool)))))
        self._rows[guest.vmid] = (guest, pool, row)
        return row

    def keep(self, count: int) -> None:
        """Forgets everything when most of it must belong to guests that are gone; `count` is how many there are."""
        if len(self._rows) > 2 * count + 100:
            self._rows = {}
