# SPDX-License-Identifier: AGPL-3.0-or-later
"""A disk image from a tree with a system: GPT, booted by BIOS and by UEFI, grown by the system itself.

    sector 0         GRUB's first stage, protective partition table
    1 MiB .. 2 MiB   GRUB's core for BIOS (partition 14, as images for clouds have it)
    2 MiB .. 34 MiB  EFI system partition with GRUB for UEFI (partition 15)
    34 MiB ..        ext4 (partition 1), last, so that it can grow with the disk

GRUB starts what `/vmlinuz` and `/initrd.img` lead to. Debian's packages keep these links, so that a new kernel is
started without GRUB being a package of the system.
"""

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from orrery.drivers.images import bootdisk
from orrery.drivers.images.bootdisk import MEBIBYTE, SECTOR
from orrery.errors import Failure
from orrery.system.process import run

_CORE: Final = 1 * MEBIBYTE
_ESP: Final = 2 * MEBIBYTE
_ROOT: Final = 34 * MEBIBYTE
_SPARE_TABLE: Final = MEBIBYTE  # the second partition table, at the end
_TYPES: Final = {
    14: "21686148-6449-6E6F-744E-656564454649",
    15: "C12A7328-F81F-11D2-BA4B-00A0C93EC93B",
    1: "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709",
}
_SHARED: Final = ("part_gpt", "ext2", "search_fs_uuid", "configfile", "normal", "test", "echo", "linux")
_BIOS: Final = (*_SHARED, "biosdisk", "linux16")
_UEFI: Final = (*_SHARED, "fat", "all_video", "efi_gop")
_ARGUMENTS: Final = "ro quiet console=tty0 console=ttyS0,115200"
_TOOL_TIMEOUT: Final = 120.0

_EARLY: Final = """\
search.fs_uuid {uuid} root
set prefix=($root)/boot/grub
configfile ($root)/boot/grub/grub.cfg
"""
# On a BIOS the 16-bit way in: the other one moves kernel and ramdisk byte by byte.
_MENU: Final = """\
set timeout=1
if [ "$grub_platform" = pc ]; then
  set bits=16
fi
menuentry 'Linux' {{
  linux$bits /vmlinuz root=UUID={uuid} {arguments}
  initrd$bits /initrd.img
}}
menuentry 'Linux, the kernel before' {{
  linux$bits /vmlinuz.old root=UUID={uuid} {arguments}
  initrd$bits /initrd.img.old
}}
"""


@dataclass(frozen=True, slots=True)
class MachineDisk:
    """What becomes a disk: a tree with `/vmlinuz` and `/initrd.img`, and the disk's size in bytes, whole MiB."""

    tree: Path
    size: int
    arguments: str = _ARGUMENTS

    def write(self, output: Path, work: Path, tick: Callable[[], None] = lambda: None) -> None:
        """Makes the image (qcow2, compressed) at `output`; `work` is a folder for what lies on the way.

        Writes /etc/fstab and /boot/grub/grub.cfg into the tree. `tick` is called between the steps; what it raises
        ends it. Raises Failure when a tool fails.
        """
        for name in ("vmlinuz", "initrd.img"):
            if not (self.tree / name).is_symlink():
                raise Failure(f"the system has no '/{name}': its kernel was not installed as a package")
        identity = str(uuid.uuid4())
        self._describe(identity)
        raw = work / "disk.raw"
        with raw.open("wb") as file:
            file.truncate(self.size)
        run(["sfdisk", "-q", str(raw)], input=self._table().encode(), timeout=_TOOL_TIMEOUT)
        tick()
        room = self.size - _ROOT - _SPARE_TABLE
        bootdisk.make_ext4(raw, self.tree, start=_ROOT, size=room, uuid=identity, options="lazy_itable_init=0")
        tick()
        early = _EARLY.format(uuid=identity)
        core = bootdisk.core_for_bios(early, _BIOS, work, sector=_CORE // SECTOR, room=_ESP - _CORE)
        system = self._esp(bootdisk.grub_image(bootdisk.UEFI, early, _UEFI, work), work)
        with raw.open("r+b") as file:
            file.write(bootdisk.first_stage(_CORE // SECTOR)[:440])  # behind it lies the partition table
            for place, content in ((_CORE, core), (_ESP, system)):
                file.seek(place)
                file.write(content)
        tick()
        bootdisk.to_qcow2(raw, output)
        raw.unlink()

    def _describe(self, identity: str) -> None:
        (self.tree / "etc/fstab").write_text(f"UUID={identity} / ext4 rw,discard,errors=remount-ro 0 1\n")
        menu = self.tree / "boot/grub/grub.cfg"
        menu.parent.mkdir(exist_ok=True)
        menu.write_text(_MENU.format(uuid=identity, arguments=self.arguments))

    def _table(self) -> str:
        places = {14: (_CORE, _ESP), 15: (_ESP, _ROOT), 1: (_ROOT, self.size - _SPARE_TABLE)}
        lines = [
            f"{number}: start={start // SECTOR}, size={(end - start) // SECTOR}, type={_TYPES[number]}\n"
            for number, (start, end) in places.items()
        ]
        return "label: gpt\n" + "".join(lines)

    def _esp(self, program: bytes, work: Path) -> bytes:
        """A FAT file system with the program that UEFI starts from disks that it does not know."""
        image, boot = work / "esp.img", work / "bootx64.efi"
        boot.write_bytes(program)
        with image.open("wb") as file:
            file.truncate(_ROOT - _ESP)
        run(["mkfs.vfat", "-n", "ESP", str(image)], timeout=_TOOL_TIMEOUT)
        run(["mmd", "-i", str(image), "::EFI", "::EFI/BOOT"], timeout=_TOOL_TIMEOUT)
        run(["mcopy", "-i", str(image), str(boot), "::EFI/BOOT/BOOTX64.EFI"], timeout=_TOOL_TIMEOUT)
        return image.read_bytes()
