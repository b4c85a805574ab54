# SPDX-License-Identifier: AGPL-3.0-or-later
"""Debian as a disk image for machines, built here: for sites without Internet beyond a mirror of packages.

The system is put together as that of a container is (`debootstrap`), with a kernel, cloud-init, the guest's agent and a
server for SSH; then it becomes a disk that BIOS and UEFI boot (`machinedisk`). It has no user of its own until
cloud-init makes one, and takes the disk that it is given.
"""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

from orrery.drivers.images import debootstrap
from orrery.drivers.images.bootdisk import MEBIBYTE
from orrery.drivers.images.debootstrap import Build
from orrery.drivers.images.machinedisk import MachineDisk
from orrery.errors import Failure
from orrery.model.images import Debootstrap
from orrery.system import files, process

ENDING: Final = "qcow2"
DEFAULT_USER: Final = "debian"
SIZE: Final = 2048 * MEBIBYTE
"""Bytes of the disk; cloud-init grows partition and file system into a larger one."""
PROGRAMS: Final = (*debootstrap.PROGRAMS, "tar", "mke2fs", "sfdisk", "mkfs.vfat", "mmd", "mcopy", "grub-mkimage")
PACKAGES: Final = (
    *("linux-image-amd64", "initramfs-tools", "zstd", "udev", "kmod", "e2fsprogs", "fdisk"),
    *("cloud-init", "cloud-guest-utils", "qemu-guest-agent", "netplan.io", "systemd-resolved", "systemd-timesyncd"),
    *("sudo", "less", "nano"),
)

_UNPACK_SECONDS: Final = 600.0
_ROOM: Final = 4 << 30
_CLOUD: Final = """\
# Where a machine learns what it is told: from a medium, and never from the network.
datasource_list: [NoCloud, ConfigDrive, OpenNebula, None]
# C.UTF-8 is there, and needs no package that makes others.
locale: false
system_info:
  network:
    renderers: [netplan]
apt:
  preserve_sources_list: true
"""
# Optical drives may take longer to be found than the system to begin: what it finds that early must not decide whether
# cloud-init runs at all, and cloud-init looks when the first search for devices has come to its end.
_ALWAYS: Final = "policy: enabled\n"
_AFTER_DEVICES: Final = """\
[Unit]
Wants=systemd-udev-settle.service
After=systemd-udev-settle.service
"""


def require_programs(source: Debootstrap) -> None:
    """Raises Failure when something that a build needs is not installed."""
    debootstrap.require_programs(source)
    for program in PROGRAMS:
        process.find(program)
    for platform in ("i386-pc", "x86_64-efi"):
        if not Path("/usr/lib/grub", platform).is_dir():
            raise Failure(f"GRUB's modules for {platform} are missing: install grub-pc-bin and grub-efi-amd64-bin")


def build(what: Build, folder: Path, target: Path, log: Callable[[str], None], tick: Callable[[], None]) -> None:
    """Writes the disk image into the file `target`, working below the empty folder `folder`.

    `tick` is called now and then; what it raises ends the build. Raises Failure with what a program said last.
    """
    files.require_space(folder, _ROOM)
    packages, tree, work = folder / "packages", folder / "tree", folder / "disk"
    packed = folder / f"root.{debootstrap.ENDING}"
    for each in (packages, tree, work):
        each.mkdir(mode=0o700)
    debootstrap.build(replace(what, ssh=True, packages=PACKAGES), packages, packed, log, tick)
    debootstrap.clear(packages)
    log("making the disk")
    unpack = ["tar", "--zstd", "-xpf", str(packed), "-C", str(tree), "--numeric-owner", "--exclude=./dev/*"]
    process.run(unpack, timeout=_UNPACK_SECONDS)
    tick()
    packed.unlink()
    tree.chmod(0o755)
    (tree / "etc/cloud/cloud.cfg.d/90-medium.cfg").write_text(_CLOUD)
    (tree / "etc/cloud/ds-identify.cfg").write_text(_ALWAYS)
    waiting = tree / "etc/systemd/system/cloud-init-local.service.d"
    waiting.mkdir(parents=True, exist_ok=True)
    (waiting / "devices.conf").write_text(_AFTER_DEVICES)
    (tree / "etc/resolv.conf").symlink_to("../run/systemd/resolve/stub-resolv.conf")
    made = work / "made.qcow2"
    MachineDisk(tree, SIZE).write(made, work, tick)
    try:
        shutil.copyfile(made, target)
    except OSError as error:
        raise files.failure(error, "unable to write the disk image") from error
