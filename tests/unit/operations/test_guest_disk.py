# SPDX-License-Identifier: AGPL-3.0-or-later
"""Sizes that disks are asked to grow to."""

from types import SimpleNamespace
from typing import Any

import pytest

from orrery.errors import ParameterError
from orrery.model.volume import VolumeId
from orrery.operations.guest_disk import MoveDisk, ResizeDisk

DISK = VolumeId("local", "100/vm-100-disk-0.raw")


def node_with_a_disk_of(size: int) -> Any:
    storage = SimpleNamespace(info=lambda name: SimpleNamespace(size=size))
    return SimpleNamespace(storages=SimpleNamespace(volume=lambda volume: (storage, DISK.name)))


@pytest.mark.parametrize(("size", "expected"), [("2G", 2 << 30), ("+1G", 2 << 30), ("+1", (1 << 30) + 4096)])
def test_a_size_in_whole_blocks(size: str, expected: int) -> None:
    assert ResizeDisk(100, "scsi0", size).target(node_with_a_disk_of(1 << 30), DISK) == expected


@pytest.mark.parametrize("size", ["9" * 5000, "9999999999999999T", "+9999999999999999T", "1M", "0"])
def test_sizes_that_no_disk_can_have(size: str) -> None:
    with pytest.raises(ParameterError) as caught:
        ResizeDisk(100, "scsi0", size).target(node_with_a_disk_of(1 << 30), DISK)
    assert list(caught.value.errors) == ["size"]


@pytest.mark.parametrize(
    ("limit", "source", "target", "expected"),
    [
        (None, None, None, None),
        (None, None, "move=100", 100 << 10),
        (None, "default=50", "move=100", 50 << 10),
        (None, "move=0,default=50", None, None),
        (7, "default=50", "move=100", 7 << 10),
        (0, "default=50", "move=100", 0),
    ],
)
def test_a_move_is_as_slow_as_its_storages_want(
    limit: int | None, source: str | None, target: str | None, expected: int | None
) -> None:
    found: dict[str, dict[str, str | None]] = {"local": {"bwlimit": source}, "fast": {"bwlimit": target}}
    ctx: Any = SimpleNamespace(storages=SimpleNamespace(definition=found.__getitem__))
    assert MoveDisk(100, "scsi0", target="fast", limit=limit).rate(ctx, DISK) == expected
