# SPDX-License-Identifier: AGPL-3.0-or-later
"""A drive's option says whether a volume is to be made, copied, used, or none."""

import pytest

from orrery.errors import ParameterError
from orrery.operations.drives import is_drive, next_unused, parse_drive


def test_a_new_disk() -> None:
    drive = parse_drive("scsi0", "local:32,ssd=1")
    assert (drive.storage, drive.size, drive.source, drive.volume) == ("local", 32 << 30, None, None)
    assert drive.is_new


def test_a_fraction_of_a_gibibyte() -> None:
    assert parse_drive("virtio1", "local:0.5").size == 1 << 29


def test_an_imported_disk() -> None:
    drive = parse_drive("virtio0", "local:0,import-from=local:import/a.qcow2")
    assert drive.is_new
    assert str(drive.source) == "local:import/a.qcow2"


def test_an_existing_volume() -> None:
    drive = parse_drive("sata0", "local:100/vm-100-disk-0.raw,size=1G")
    assert not drive.is_new
    assert str(drive.volume) == "local:100/vm-100-disk-0.raw"


@pytest.mark.parametrize("text", ["none,media=cdrom", "none", "local:iso/a.iso,media=cdrom"])
def test_optical_drives(text: str) -> None:
    assert parse_drive("ide2", text).is_cdrom


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("scsi0", "local:0"),
        ("scsi0", "local:100/vm-100-disk-0.raw,import-from=local:import/a.raw"),
        ("scsi0", "local:4,size=x"),
        ("scsi0", "local:4,local:5"),
        ("scsi0", "local:4,ssd=1,ssd=0"),
        ("scsi0", "local:4,frobnicate=1"),
        ("scsi0", "../etc/passwd"),
        ("virtio0", "local:4,ssd=1"),
        ("net0", "virtio"),
    ],
)
def test_what_cannot_be_a_drive_is_refused_by_name(key: str, text: str) -> None:
    with pytest.raises(ParameterError) as caught:
        parse_drive(key, text)
    assert list(caught.value.errors) == [key]


@pytest.mark.parametrize(
    ("key", "expected"),
    [("scsi30", True), ("scsi31", False), ("efidisk0", True), ("net0", False), ("cdrom", False), ("unused0", False)],
)
def test_which_options_are_drives(key: str, expected: bool) -> None:
    assert is_drive(key) is expected


def test_unused_disks_are_numbered_without_gaps() -> None:
    assert next_unused({"unused0": "x", "unused2": "y"}) == "unused1"
