# SPDX-License-Identifier: AGPL-3.0-or-later
"""Kernel modules for the demonstration guest: a choice by name, and everything that it depends on."""

import shutil
from collections.abc import Iterable
from pathlib import Path

from orrery.errors import Failure
from orrery.system.process import run

_DEPMOD_TIMEOUT = 60.0

# Without these the guest cannot be reached at all.
REQUIRED = ("virtio_pci", "virtio_blk", "virtio_scsi", "virtio_net", "virtio_console", "sd_mod")
# What it may boot from.
STORAGE = (
    "virtio_pci", "virtio_blk", "virtio_scsi", "sd_mod", "ata_piix", "ahci", "nvme", "sym53c8xx", "megaraid_sas",
    "mptspi", "mptsas", "vmw_pvscsi", "ext4", "crc32c_generic",
)  # fmt: skip
# What it may be given besides; a kernel of clouds lacks some of them.
DEVICES = (
    "virtio_net", "virtio_console", "virtio_balloon", "virtio_rng", "virtio_mem", "virtio_input", "e1000", "e1000e",
    "8139cp", "8139too", "vmxnet3", "pcnet32", "ne2k_pci", "sr_mod", "isofs", "vfat", "nls_ascii", "nls_utf8",
    "nls_cp437", "button", "evdev", "xhci_pci", "uhci_hcd", "ehci_pci", "usb_storage", "usbhid", "i6300esb", "iTCO_wdt",
    "i2c_piix4", "qemu_fw_cfg", "vmgenid", "af_packet", "loop",
)  # fmt: skip


class KernelModules:
    """The modules of one unpacked kernel package."""

    def __init__(self, tree: Path) -> None:
        versions = sorted((tree / "lib" / "modules").iterdir())
        if len(versions) != 1:
            raise Failure(f"'{tree}' holds {len(versions)} kernels instead of one")
        self.version = versions[0].name
        self._folder = versions[0]
        if not (self._folder / "modules.dep").exists():
            run(["depmod", "-b", str(tree), self.version], timeout=_DEPMOD_TIMEOUT)
        self._needs = _read_dependencies(self._folder / "modules.dep")
        self._paths = {_plain(path): path for path in self._needs}

    def install(self, names: Iterable[str], root: Path) -> None:
        """Copy the named modules and what they need below `root`, with the tables that modprobe reads.

        Names that this kernel does not have as modules are passed over. Raises Failure when a required one is absent.
        """
        missing = [name for name in REQUIRED if name not in self._paths]
        if missing:
            raise Failure(f"the kernel {self.version} has no module {', '.join(missing)}")
        target = root / "lib" / "modules" / self.version
        target.mkdir(parents=True)
        for table in ("modules.order", "modules.builtin", "modules.builtin.modinfo"):
            shutil.copy(self._folder / table, target / table)
        chosen = [self._paths[name] for name in names if name in self._paths]
        for path in dict.fromkeys(need for module in chosen for need in (module, *self._needs[module])):
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(self._folder / path, target / path)
        run(["depmod", "-b", str(root), self.version], timeout=_DEPMOD_TIMEOUT)
        for binary in target.glob("modules.*.bin"):
            binary.unlink()  # for kmod; busybox reads the text


def _plain(path: str) -> str:
    """A module's name: file names may have hyphens where the kernel says underscore."""
    return Path(path).name.split(".", 1)[0].replace("-", "_")


def _read_dependencies(table: Path) -> dict[str, list[str]]:
    """modules.dep: a path, a colon, and the paths of all that it needs, not only of the next."""
    rows = (line.split(":", 1) for line in table.read_text().splitlines())
    return {path: needs.split() for path, needs in rows}
