# SPDX-License-Identifier: AGPL-3.0-or-later
"""What may be said about a virtual machine: looking up options, checking values, who may set what.

The table itself is `MACHINE_OPTIONS`. What a change means for a running machine is in `orrery.model.machine_changes`,
typed views of the devices in `orrery.model.devices`.
"""

import re
from collections.abc import Collection, Mapping

from orrery.model.cloudinit import is_drive as is_cloudinit
from orrery.model.cpu import check_cpu
from orrery.model.guest_options import CDROM, CLOUDINIT, DISK, NETWORK, POWER, Option, Requirement, unique_tags
from orrery.model.machine_options import MACHINE_OPTIONS
from orrery.model.machine_properties import BOOT, CPU, MEMORY, PCI, RNG, USB, VIRTIOFS
from orrery.model.values import Value

__all__ = [
    "MACHINE_OPTIONS",
    "Option",
    "Requirement",
    "boot_without",
    "check_machine",
    "expand_indexed",
    "find_option",
    "is_disk",
    "privileges_for",
    "reply_value",
    "root_only",
    "unique_tags",
    "unsupported",
    "validate_options",
]

MAX_CPUS = 255

_DISK = re.compile(r"(?:(?:ide|sata|scsi|virtio)\d+|efidisk0|tpmstate0|cdrom)", re.ASCII)

expand_indexed = MACHINE_OPTIONS.expand
find_option = MACHINE_OPTIONS.find
reply_value = MACHINE_OPTIONS.reply_value


def is_disk(key: str) -> bool:
    """Whether a key names a disk or CD-ROM drive (unused volumes not counted)."""
    return find_option(key) is not None and _DISK.fullmatch(key) is not None


def validate_options(
    options: Mapping[str, str], *, sort_tags: bool = True, case_sensitive_tags: bool = False
) -> dict[str, str]:
    """Values in canonical text; ParameterError with all faults by parameter.

    `cdrom` becomes `ide2`. How tags are written follows the cluster's tag style, which the caller passes.
    """

    def check(key: str, value: str) -> None:
        if key == "cpu":
            check_cpu(CPU.parse(value))
        elif key == "cdrom" and "ide2" in options:
            raise ValueError("option 'cdrom' is another name of 'ide2'; give only one of them")

    canonical = MACHINE_OPTIONS.validate(
        options, check=check, sort_tags=sort_tags, case_sensitive_tags=case_sensitive_tags
    )
    return {"ide2" if key == "cdrom" else key: value for key, value in canonical.items()}


def unsupported(options: Mapping[str, str]) -> dict[str, str]:
    """What this version knows but does not act on, by parameter; values that equal the default are fine.

    The options must have passed `validate_options`.
    """
    return MACHINE_OPTIONS.unsupported(options, _unsupported_words)


def root_only(key: str, value: str | None, old: str | None = None) -> str | None:
    """Why only root@pam may set (or, with value None, delete) this, as a message; None when privileges are enough.

    Reserved are options that reach the host: raw arguments, hook scripts, paths and devices of the host.
    """
    option = find_option(key)
    if option is None or option.root_only:
        return f"only root can set '{key}' config"
    base = option.base
    if base == "serial" and any(each not in (None, "socket") for each in (value, old)):
        return f"only root can {'delete' if value is None else 'set'} '{key}' config for real devices"
    if value is None or option.properties is None:
        return None
    values = option.properties.parse(value)
    if is_disk(key):
        paths = [name for name in ("file", "import-from") if str(values.get(name, "")).startswith("/")]
        return f"only root can use a path of the host as '{paths[0]}' of '{key}'" if paths else None
    host = str(values.get("host", ""))
    if base in ("usb", "hostpci") and ((host and host.lower() != "spice") or "romfile" in values):
        return f"only root can set '{key}' config for real devices"
    return None


def privileges_for(key: str, value: str | None, old: str | None = None) -> tuple[Requirement, ...]:
    """What a user other than root needs to set an option to a value, or (None) to delete it.

    Reserved options need root (`root_only`) and nothing else is listed for them. Space on storages is not judged here.
    """
    option = find_option(key)
    if key == "vmstate":
        return (Requirement((DISK, POWER)),)
    if option is None or option.root_only:
        return ()
    if is_disk(key):
        found = {CDROM if _is_cdrom(text) else DISK for text in (value, old) if text is not None}
        found |= {CLOUDINIT for text in (value, old) if is_cloudinit(text)}
        return tuple(Requirement((privilege,)) for privilege in sorted(found or {DISK})) + _host_drive(value)
    if option.privilege == CLOUDINIT:
        return (Requirement((CLOUDINIT, NETWORK), any_of=True),)
    own = (Requirement((option.privilege,)),)
    if key == "startup":
        return (*own, Requirement(("Sys.Modify",), "/"))
    return own + _mapping_use(option.base, value)


def check_machine(options: Mapping[str, str]) -> dict[str, str]:
    """Faults between the options of a whole machine, by parameter; empty when it could be built."""
    errors: dict[str, str] = {}
    memory = int(MEMORY.parse(options.get("memory", "512"))["current"])
    if int(options.get("balloon", "0")) > memory:
        errors["balloon"] = f"balloon value too large (must be smaller than assigned memory, {memory} MiB)"
    cpus = int(options.get("sockets", "1")) * int(options.get("cores", "1"))
    if cpus > MAX_CPUS:
        errors["cores"] = f"sockets times cores is {cpus}; a machine has at most {MAX_CPUS} processors"
    if int(options.get("vcpus", "0")) > cpus:
        errors["vcpus"] = f"vcpus must not exceed sockets times cores ({cpus})"
    if "boot" in options:
        order = str(BOOT.parse(options["boot"]).get("order", ""))
        missing = [device for device in order.split(";") if device and device not in options]
        if missing:
            errors["boot"] = f"invalid bootorder: device '{missing[0]}' does not exist"
    return errors


def boot_without(boot: str, gone: Collection[str]) -> str | None:
    """The option `boot` without devices that the machine loses; None when it then says nothing any more."""
    values = BOOT.parse(boot)
    if "order" not in values:
        return boot
    order = [device for device in str(values.pop("order")).split(";") if device not in gone]
    if order:
        values["order"] = ";".join(order)
    return BOOT.print(values) if values else None


def _is_cdrom(text: str) -> bool:
    return "media=cdrom" in text.split(",") or text.partition(",")[0] in ("none", "cdrom") or is_cloudinit(text)


def _host_drive(value: str | None) -> tuple[Requirement, ...]:
    used = value is not None and value.partition(",")[0] == "cdrom"
    return (Requirement(("Sys.Console",), "/"),) if used else ()


def _mapping_use(base: str, value: str | None) -> tuple[Requirement, ...]:
    """Devices and folders of the host that an administrator has given a name need the right to use that name."""
    if value is None:
        return ()
    path: Value | None = None
    if base in ("usb", "hostpci"):
        mapped = (USB if base == "usb" else PCI).parse(value).get("mapping")
        path = f"/mapping/{'usb' if base == 'usb' else 'pci'}/{mapped}" if mapped else None
    elif base == "virtiofs":
        path = f"/mapping/dir/{VIRTIOFS.parse(value)['dirid']}"
    elif base == "rng0" and RNG.parse(value).get("source") == "/dev/hwrng":
        path = "/mapping/hwrng"
    return (Requirement(("Mapping.Use",), str(path)),) if path else ()


def _unsupported_words(key: str, values: Mapping[str, Value]) -> list[str]:
    found: list[str] = []
    file = str(values.get("file", ""))
    if is_disk(key) and file == "cdrom":
        found.append("the host's CD-ROM drive")
    if key == "machine" and str(values.get("type", "")).startswith("virt"):
        found.append(f"type={values['type']}")
    if key == "cpu" and str(values.get("cputype", "")).startswith("custom-"):
        found.append("a custom processor model")
    return found
