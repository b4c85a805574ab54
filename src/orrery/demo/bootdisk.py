# SPDX-License-Identifier: AGPL-3.0-or-later
"""A disk image that a PC's BIOS boots, made from a folder without loop devices, mounts or root's rights.

Layout: sector 0 holds the partition table (MBR) and GRUB's first stage, the sectors behind it GRUB's core with its
whole configuration, and from 1 MiB to the end lies one ext4 partition with the folder's contents. Because it is the
last partition, the guest can grow it when its disk has grown.
"""

import struct
from dataclasses import dataclass
from pathlib import Path

from orrery.drivers.images import bootdisk
from orrery.drivers.images.bootdisk import MEBIBYTE, SECTOR

PARTITION_START = MEBIBYTE  # bytes; the usual alignment leaves 2047 sectors for GRUB's core

_TABLE = 446  # offset of the first partition entry in sector 0
_LINUX = 0x83
_ACTIVE = 0x80
_BEYOND_CHS = b"\xfe\xff\xff"  # "use the LBA fields"
_GRUB_MODULES = ("biosdisk", "part_msdos", "ext2", "search_fs_uuid", "linux16")


@dataclass(frozen=True, slots=True)
class BootDisk:
    """What is on the disk: `kernel` and `ramdisk` are paths within `tree`, `uuid` names its file system."""

    tree: Path
    kernel: str
    ramdisk: str
    uuid: str
    arguments: str
    size: int  # bytes, a multiple of a MiB

    def write(self, output: Path, work: Path) -> None:
        """Make the image (qcow2, compressed) at `output`; `work` is an empty folder for what lies on the way.

        Raises Failure when one of the tools fails.
        """
        raw = work / "disk.raw"
        with raw.open("wb") as file:
            file.truncate(self.size)
        room = self.size - PARTITION_START
        bootdisk.make_ext4(
            *(raw, self.tree),
            start=PARTITION_START,
            size=room,
            uuid=self.uuid,
            options="lazy_itable_init=1,root_owner=0:0",
        )
        core = bootdisk.core_for_bios(
            self._configuration(), _GRUB_MODULES, work, sector=1, room=PARTITION_START - SECTOR
        )
        with raw.open("r+b") as file:
            file.write(_boot_sector(room // SECTOR))
            file.seek(SECTOR)
            file.write(core)
        bootdisk.to_qcow2(raw, output)

    def _configuration(self) -> str:
        """The commands that find and start the kernel.

        The 16-bit way into the kernel: the other one moves it byte by byte, two seconds on an emulated processor.
        """
        return (
            f"search.fs_uuid {self.uuid} root\n"
            f"linux16 {self.kernel} root=UUID={self.uuid} {self.arguments}\n"
            f"initrd16 {self.ramdisk}\n"
            "boot\n"
        )


def _boot_sector(sectors: int) -> bytes:
    """GRUB's first stage with a partition table of one active Linux partition, `sectors` long."""
    stage = bootdisk.first_stage(1)
    start = PARTITION_START // SECTOR
    entry = struct.pack("<B3sB3sII", _ACTIVE, _BEYOND_CHS, _LINUX, _BEYOND_CHS, start, sectors)
    stage[_TABLE:] = entry + bytes(48) + b"\x55\xaa"
    return bytes(stage)
