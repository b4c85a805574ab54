# SPDX-License-Identifier: AGPL-3.0-or-later
"""The order in which guests start with the host and end with it, and whether the host has booted since."""

from collections.abc import Iterable

from orrery.model.devices import Startup, parse_startup
from orrery.model.guest import GuestRecord
from orrery.system import host
from orrery.system.files import write_atomic
from orrery.system.paths import Paths


def first_start_since_boot(paths: Paths) -> bool:
    """Whether no node of this root has started its guests since the host booted; from now on one has."""
    boot = host.boot_id()
    if paths.boot_file.exists() and paths.boot_file.read_text().strip() == boot:
        return False
    write_atomic(paths.boot_file, f"{boot}\n".encode(), 0o600)
    return True


def place_of(record: GuestRecord) -> Startup:
    """When a guest starts and ends among the others, as its option `startup` says."""
    return parse_startup(record.config.options.get("startup", ""))


def in_order(records: Iterable[GuestRecord]) -> list[GuestRecord]:
    """Guests in the order in which they start, those without one last; they end in reverse."""

    def key(record: GuestRecord) -> tuple[bool, int, int]:
        order = place_of(record).order
        return (order is None, order or 0, record.vmid)

    return sorted(records, key=key)
