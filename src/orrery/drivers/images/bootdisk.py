# SPDX-License-Identifier: AGPL-3.0-or-later
"""Parts of disk images that boot, made from folders without loop devices or mounts: GRUB, file systems, qcow2."""

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from orrery.errors import Failure
from orrery.system.process import run

SECTOR: Final = 512
MEBIBYTE: Final = 1 << 20
BIOS: Final = "i386-pc"
UEFI: Final = "x86_64-efi"

_GRUB: Final = Path("/usr/lib/grub/i386-pc")
_CORE_SECTOR_FIELD: Final = 0x5C  # in GRUB's boot.img: first sector of the core, 64 bits
_REST_SECTOR_FIELD: Final = 0x1F4  # in the core's first sector: where the rest of it begins, 64 bits
_TOOL_TIMEOUT: Final = 120.0
_LONG_TIMEOUT: Final = 900.0


def first_stage(core_sector: int) -> bytearray:
    """GRUB's first stage, sector 0 of a disk for BIOS, with an empty partition table."""
    stage = bytearray((_GRUB / "boot.img").read_bytes()[:SECTOR])
    struct.pack_into("<Q", stage, _CORE_SECTOR_FIELD, core_sector)
    return stage


def core_for_bios(configuration: str, modules: Sequence[str], work: Path, *, sector: int, room: int) -> bytes:
    """GRUB's second stage for a BIOS, which will begin at `sector`. Raises Failure when it needs more than `room`."""
    core = bytearray(grub_image(BIOS, configuration, modules, work))
    struct.pack_into("<Q", core, _REST_SECTOR_FIELD, sector + 1)
    if len(core) > room:
        raise Failure(f"GRUB's core has {len(core)} bytes, and there is room for {room}")
    return bytes(core)


def grub_image(platform: str, configuration: str, modules: Sequence[str], work: Path) -> bytes:
    """GRUB with modules and a first configuration built in: a core for BIOS, a program for UEFI."""
    early, image = work / f"{platform}.cfg", work / f"{platform}.img"
    early.write_text(configuration)
    command = ["grub-mkimage", "-O", platform, "-p", "/boot/grub", "-c", str(early), "-o", str(image)]
    run([*command, *modules], timeout=_TOOL_TIMEOUT)
    return image.read_bytes()


def make_ext4(raw: Path, tree: Path, *, start: int, size: int, uuid: str, options: str = "lazy_itable_init=1") -> None:
    """Writes an ext4 file system with a folder's contents into a raw disk, from `start` on; both in bytes."""
    command = ["mke2fs", "-q", "-F", "-t", "ext4", "-m", "1", "-L", "root", "-U", uuid]
    extended = ["-E", f"offset={start},{options}"]
    run([*command, *extended, "-d", str(tree), str(raw), f"{size // 1024}k"], timeout=_LONG_TIMEOUT)


def to_qcow2(raw: Path, output: Path) -> None:
    """Turns a raw disk into a compressed qcow2 image.

    By zstd, since a guest that runs from the image itself unpacks the kernel again and again while booting.
    """
    command = ["qemu-img", "convert", "-c", "-o", "compression_type=zstd", "-m", "2", "-f", "raw", "-O", "qcow2"]
    run([*command, str(raw), str(output)], timeout=_LONG_TIMEOUT)
