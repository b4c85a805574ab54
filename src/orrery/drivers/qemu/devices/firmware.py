# SPDX-License-Identifier: AGPL-3.0-or-later
"""Firmware: SeaBIOS, which QEMU brings itself, or OVMF with its variables on a disk of the machine.

Files: https://wiki.debian.org/SecureBoot/VirtualMachine
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from orrery.drivers.qemu.devices.parts import Context, Parts, Properties
from orrery.drivers.qemu.plan import VolumeFile
from orrery.errors import Failure

_FOLDER: Final = Path("/usr/share/OVMF")
CODE, VARIABLES = "pflash-code", "pflash-variables"
EFI_DISK: Final = "efidisk0"


@dataclass(frozen=True, slots=True)
class Ovmf:
    """The two halves of an OVMF firmware. `secure`: it checks signatures, for which it needs q35."""

    code: Path
    variables: Path
    size: int
    secure: bool


def ovmf(kind: str, *, pre_enrolled_keys: bool, q35: bool) -> Ovmf:
    """The firmware for an EFI disk of `kind` (`2m`, `4m`); `size` in bytes is that of its variables."""
    middle = "_4M" if kind == "4m" else ""
    size = (528 << 10) if kind == "4m" else (128 << 10)
    secure = pre_enrolled_keys and q35
    return Ovmf(
        _FOLDER / f"OVMF_CODE{middle}{'.ms' if secure else ''}.fd",
        variables_template(kind, pre_enrolled_keys=pre_enrolled_keys),
        size,
        secure,
    )


def variables_template(kind: str, *, pre_enrolled_keys: bool) -> Path:
    """The contents that a new EFI disk begins with."""
    return _FOLDER / f"OVMF_VARS{'_4M' if kind == '4m' else ''}{'.ms' if pre_enrolled_keys else ''}.fd"


def machine_options(context: Context) -> list[str]:
    """What the firmware adds to `-machine`."""
    if context.view.bios != "ovmf":
        return []
    return [f"pflash0={CODE}", f"pflash1={VARIABLES}"]


def args(context: Context) -> Parts:
    """Block nodes of the firmware and its variables."""
    view = context.view
    if view.bios != "ovmf":
        return Parts()
    disk = view.efi
    chosen = ovmf(
        disk.type if disk else "4m",
        pre_enrolled_keys=bool(disk and disk.pre_enrolled_keys),
        q35=view.machine.is_q35,
    )
    parts = Parts(blockdevs=[_code(chosen, context)])
    if chosen.secure:
        parts.options += ["-global", "driver=cfi.pflash01,property=secure,value=on"]
    elif disk and disk.pre_enrolled_keys:
        parts.notes.append("Secure Boot needs a machine of type q35; it is off")
    volume = context.volumes.get(EFI_DISK)
    if volume is not None:
        parts.blockdevs.append(_variables(volume, chosen, context))
    elif disk is not None:
        raise Failure(f"'{EFI_DISK}': its volume was not opened")
    else:
        name = context.sources.memory_copy(chosen.variables, VARIABLES)
        parts.blockdevs.append(
            {"driver": "raw", "node-name": VARIABLES, "file": {"driver": "file", "filename": name}},
        )
        parts.notes.append("the machine has no EFI disk: changes of UEFI variables last until it stops")
    return parts


def _code(chosen: Ovmf, context: Context) -> Properties:
    name = context.sources.file(chosen.code, writable=False, label=CODE)
    file = {"driver": "file", "filename": name, "read-only": True}
    return {"driver": "raw", "node-name": CODE, "read-only": True, "file": file}


def _variables(volume: VolumeFile, chosen: Ovmf, context: Context) -> Properties:
    """The flash is as large as the firmware wants, although storages may round the size of its disk up."""
    name = context.sources.file(volume.path, writable=True, label=VARIABLES, image=volume.format)
    file: Properties = {"driver": "file", "node-name": f"file-{EFI_DISK}", "filename": name}
    if volume.format != "raw":
        file = {"driver": volume.format, "node-name": f"drive-{EFI_DISK}", "file": file, "backing": None}
    return {"driver": "raw", "node-name": VARIABLES, "size": chosen.size, "file": file}
