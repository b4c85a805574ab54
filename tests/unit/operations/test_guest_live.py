# SPDX-License-Identifier: AGPL-3.0-or-later
"""A device that cannot be exchanged while the machine runs is put back."""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from orrery.errors import Failure
from orrery.model.devices import Nic
from orrery.model.disks import Disk
from orrery.operations.guest_live import change_card, change_disk

OLD_DISK, NEW_DISK = "none,media=cdrom", "none,media=cdrom,serial=new"
OLD_CARD, NEW_CARD = "virtio=BC:24:11:00:00:01,bridge=vmbr0", "virtio=BC:24:11:00:00:02,bridge=vmbr0"


@dataclass
class Live:
    """A machine that takes everything but what is new."""

    done: list[str] = field(default_factory=list)

    def unplug_disk(self, disk: Disk) -> None:
        self.done.append(f"unplug {disk.serial}")

    def plug_disk(self, disk: Disk, volume: Any) -> None:
        if disk.serial == "new":
            raise Failure("no room")
        self.done.append(f"plug {disk.serial}")

    def unplug_nic(self, card: Nic) -> None:
        self.done.append(f"unplug {card.mac}")

    def plug_nic(self, card: Nic, tap: Any) -> None:
        if card.mac == "BC:24:11:00:00:02":
            raise Failure("no room")
        self.done.append(f"plug {card.mac}")


def test_a_disk() -> None:
    live: Any = Live()
    ctx: Any = SimpleNamespace()
    with pytest.raises(Failure, match="no room"):
        change_disk(ctx, live, "replace", "scsi1", OLD_DISK, NEW_DISK)
    assert live.done == ["unplug None", "plug None"]


def test_a_card() -> None:
    live: Any = Live()
    tap = SimpleNamespace(fds=(), vhost=(), mtu=None, close=lambda: None)
    network = SimpleNamespace(tap_create=lambda *card: tap, tap_remove=lambda vmid, index: None)
    ctx: Any = SimpleNamespace(network=network)
    with pytest.raises(Failure, match="no room"):
        change_card(ctx, live, 100, "replace", "net0", OLD_CARD, NEW_CARD)
    assert live.done == ["unplug BC:24:11:00:00:01", "plug BC:24:11:00:00:01"]


def test_what_cannot_be_put_back_is_told() -> None:
    class Full(Live):
        def plug_disk(self, disk: Disk, volume: Any) -> None:
            raise Failure(f"no room for {disk.serial}")

    live: Any = Full()
    with pytest.raises(Failure, match="no room for new; and what was there before could not be put back: no room for"):
        change_disk(SimpleNamespace(), live, "replace", "scsi1", OLD_DISK, NEW_DISK)  # type: ignore[arg-type]
