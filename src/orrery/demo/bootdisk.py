# SPDX-License-Identifier: AGPL-3.0-or-later
"""A disk image that a PC's BIOS boots, made from a folder without loop devices, mounts or root's rights.

Layout: sector 0 holds the partition table (MBR) and GRUB's first stage, the sectors behind it GRUB's core with its
whole configuration, and from 1 MiB to the end lies one ext4 partition with the folder's contents. Because it is the
last partition, the guest can grow it when its disk has grown.
"""

import struct
from dataclasses import dataclass
from pathlib import Path

from orrery.system.process import run

SECTOR = 512
MEBIBYTE = 1 << 20
PARTITION_START = MEBIBYTE  # bytes; the usual alignment leaves 2047 sectors for GRUB's core

_TABLE = 446  # offset of the first partition entry in sector 0
_LINUX = 0x83
_ACTIVE = 0x80
_BEYOND_CHS = b"\xfe\xff\xff"  # "use the LBA fields"
_CORE_SECTOR_FIELD = 0x5C  # in GRUB's boot.img: first sector of the core, 64 bits
_REST_SECTOR_FIELD = 0x1F4  # in the core's first sector: where the rest of it begins, 64 bits
_GRUB = Path("/usr/lib/grub/i386-pc")
_GRUB_MODULES = ("biosdisk", "part_msdos", "ext2", "search_fs_uuid", "linux16")
_TOOL_TIMEOUT = 120.0


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
        self._write_file_system(raw)
        core = self._grub_core(work)
        with raw.open("r+b") as file:
            file.write(_boot_sector((self.size - PARTITION_START) // SECTOR))
            file.seek(SECTOR)
            file.write(core)
        # zstd, since a guest that runs from the image itself unpacks the kernel again and again while booting
        command = ["qemu-img", "convert", "-c", "-o", "compression_type=zstd", "-m", "2", "-f", "raw", "-O", "qcow2"]
        run([*command, str(raw), str(output)], timeout=_TOOL_TIMEOUT)

    def _write_file_system(self, raw: Path) -> None:
        options = f"offset={PARTITION_START},lazy_itable_init=1,root_owner=0:0"
        size = f"{(self.size - PARTITION_START) // 1024}k"
        command = ["mke2fs", "-q", "-F", "-t", "ext4", "-m", "1", "-L", "root", "-U", self.uuid]
        run([*command, "-E", options, "-d", str(self.tree), str(raw), size], timeout=_TOOL_TIMEOUT)

    def _grub_core(self, work: Path) -> bytes:
        """GRUB's second stage with the modules and the commands that find and start the kernel.

        The 16-bit way into the kernel: the other one moves it byte by byte, two seconds on an emulated processor.
        """
        configuration = work / "grub.cfg"
        configuration.write_text(
            f"search.fs_uuid {self.uuid} root\n"
            f"linux16 {self.kernel} root=UUID={self.uuid} {self.arguments}\n"
            f"initrd16 {self.ramdisk}\n"
            "boot\n"
        )
        image = work / "core.img"
        command = ["grub-mkimage", "-O", "i386-pc", "-p", "/boot/grub", "-c", str(configuration), "-o", str(image)]
        run([*command, *_GRUB_MODULES], timeout=_TOOL_TIMEOUT)
        core = bytearray(image.read_bytes())
        struct.pack_into("<Q", core, _REST_SECTOR_FIELD, 2)
        if len(core) > PARTITION_START - SECTOR:
            raise ValueError(f"GRUB's core of {len(core)} bytes does not fit before the first partition")
        return bytes(core)


def _boot_sector(sectors: int) -> bytes:
    """GRUB's first stage with a partition table of one active Linux partition, `sectors` long."""
    stage = bytearray((_GRUB / "boot.img").read_bytes()[:SECTOR])
    struct.pack_into("<Q", stage, _CORE_SECTOR_FIELD, 1)
    start = PARTITION_START // SECTOR
    entry = struct.pack("<B3sB3sII", _ACTIVE, _BEYOND_CHS, _LINUX, _BEYOND_CHS, start, sectors)
    stage[_TABLE:] = entry + bytes(48) + b"\x55\xaa"
    return bytes(stage)
