# SPDX-License-Identifier: AGPL-3.0-or-later
"""The table of a virtual machine's options.

One row per option of the compatible API: its type, who may change it, what a change means for a running machine, and
whether this version acts on it. API parameters, validation, permissions, pending changes and the reference of
configuration keys all come from here. Who may change what follows the compatible API; where that reserves an option to
root, so does this table.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from orrery.model import machine_properties as properties
from orrery.model.properties import STARTUP
from orrery.model.propertystring import PropertyString
from orrery.model.textformats import HOTPLUG_DEFAULT
from orrery.model.values import Scalar, print_value

Support = Literal["yes", "not-yet"]
Hotplug = Literal["stored", "live", "disk", "nic", "restart"]
"""What a change means for a running machine: `stored`: nothing, it concerns Orrery alone; `live`: the machine is told;
`disk`, `nic`: the device is changed or plugged if the guest's `hotplug` option allows; `restart`: it stays pending."""

CPU, MEMORY, DISK, CDROM = "VM.Config.CPU", "VM.Config.Memory", "VM.Config.Disk", "VM.Config.CDROM"
NETWORK, HARDWARE, OPTIONS = "VM.Config.Network", "VM.Config.HWType", "VM.Config.Options"
CLOUDINIT, POWER = "VM.Config.Cloudinit", "VM.PowerMgmt"
ROOT_ONLY = ""

KEYBOARDS = (
    *("de", "de-ch", "da", "en-gb", "en-us", "es", "fi", "fr", "fr-be", "fr-ca", "fr-ch", "hu", "is", "it", "ja", "lt"),
    *("mk", "nl", "no", "pl", "pt", "pt-br", "sv", "sl", "tr"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One option. `name` ends in `[n]` for numbered ones, of which there are `count`.

    `privilege`: what a user needs on the guest; empty means root alone. Disks, serial ports and devices of the host
    need more or less depending on the value (`orrery.model.machine.privileges_for`).
    """

    name: str
    rule: Scalar
    privilege: str
    hotplug: Hotplug = "restart"
    support: Support = "yes"
    properties: PropertyString | None = None
    count: int | None = None
    later_values: tuple[str, ...] = ()

    @property
    def base(self) -> str:
        """The name without `[n]`."""
        return self.name.removesuffix("[n]")

    @property
    def default(self) -> str | None:
        """The value that holds when the option is absent, in canonical text; None when there is none."""
        return None if self.rule.default is None else print_value(self.rule.default)

    @property
    def root_only(self) -> bool:
        """Whether no privilege is enough to change it, only being root@pam."""
        return self.privilege == ROOT_ONLY

    def canonical(self, text: str, key: str) -> str:
        """The value in canonical text; ValueError with the text for the parameter `key`."""
        text = self.rule.canonical(text)
        if self.properties is None:
            return text
        try:
            return self.properties.canonical(text, key)
        except ValueError as error:
            raise ValueError(f"invalid format - {error}") from None


def _option(
    name: str,
    rule: Scalar | PropertyString,
    privilege: str,
    hotplug: Hotplug = "restart",
    support: Support = "yes",
    *,
    count: int | None = None,
    max_length: int | None = None,
    later_values: tuple[str, ...] = (),
) -> Option:
    schema = rule if isinstance(rule, PropertyString) else None
    scalar = Scalar(max_length=max_length) if isinstance(rule, PropertyString) else rule
    return Option(
        name=name + ("[n]" if count else ""),
        rule=scalar,
        privilege=privilege,
        hotplug=hotplug,
        support=support,
        properties=schema,
        count=count,
        later_values=later_values,
    )


def _later(name: str, rule: Scalar | PropertyString, privilege: str, *, count: int | None = None) -> Option:
    return _option(name, rule, privilege, support="not-yet", count=count)


def _text(format_: str | None = None, *, pattern: str | None = None, longest: int | None = None) -> Scalar:
    return Scalar(format=format_, pattern=pattern, max_length=longest)


def _word(*words: str, default: str | None = None) -> Scalar:
    return Scalar(enum=words, default=default)


def _flag(default: bool | None = False) -> Scalar:
    return Scalar(type="boolean", default=default)


def _integer(low: int, high: int | None = None, default: int | None = None) -> Scalar:
    return Scalar(type="integer", minimum=low, maximum=high, default=default)


_STARTDATE = r"(now|\d{4}-\d{1,2}-\d{1,2}(T\d{1,2}:\d{1,2}:\d{1,2})?)"
_HOTPLUG = Scalar(format="pve-hotplug-features", default=",".join(HOTPLUG_DEFAULT))
_LOCKS = ("backup", "clone", "create", "migrate", "rollback", "snapshot", "snapshot-delete", "suspending", "suspended")
_SCSI_CONTROLLERS = ("lsi", "lsi53c810", "virtio-scsi-pci", "virtio-scsi-single", "megasas", "pvscsi")
_SYSTEMS = ("other", "wxp", "w2k", "w2k3", "w2k8", "wvista", "win7", "win8", "win10", "win11", "l24", "l26", "solaris")

_ROWS: tuple[Option, ...] = (
    # Processor and memory
    _option("affinity", _text("pve-cpuset"), ROOT_ONLY),
    _option("cores", _integer(1, default=1), CPU),
    _option("cpu", properties.CPU, CPU),
    _option("cpulimit", Scalar(type="number", minimum=0, maximum=128, default=0.0), CPU, "live"),
    _option("cpuunits", _integer(1, 262144), CPU, "live"),
    _option("numa", _flag(), CPU),
    _option("sockets", _integer(1, default=1), CPU),
    _option("vcpus", _integer(1), CPU),
    _option("balloon", _integer(0), MEMORY, "live"),
    _option("memory", properties.MEMORY, MEMORY),
    _later("shares", _integer(0, 50000, 1000), MEMORY),
    _later("smp", _integer(1, default=1), CPU),
    _later("numa", properties.NUMA_NODE, CPU, count=8),
    _later("allow-ksm", _flag(True), MEMORY),
    _later("hugepages", _word("any", "2", "1024"), ROOT_ONLY),
    _later("keephugepages", _flag(), ROOT_ONLY),
    _later("ivshmem", properties.IVSHMEM, ROOT_ONLY),
    _later("amd-sev", properties.SEV, ROOT_ONLY),
    _later("intel-tdx", properties.TDX, ROOT_ONLY),
    # Disks; what a user needs depends on whether it is a CD-ROM
    _option("boot", properties.BOOT, DISK),
    _option("bootdisk", _text("pve-qm-bootdisk"), DISK),
    _option("cdrom", properties.IDE_DISK, CDROM, "disk"),
    _option("efidisk0", properties.EFI_DISK, DISK),
    _option("ide", properties.IDE_DISK, DISK, "disk", count=4),
    _option("sata", properties.SATA_DISK, DISK, "disk", count=6),
    _option("scsi", properties.SCSI_DISK, DISK, "disk", count=31),
    _option("virtio", properties.VIRTIO_DISK, DISK, "disk", count=16),
    _option("scsihw", _word(*_SCSI_CONTROLLERS, default="lsi"), HARDWARE),
    _option("unused", properties.UNUSED_DISK, DISK, "stored", count=256),
    _later("tpmstate0", properties.TPM_STATE, DISK),
    _later("virtiofs", properties.VIRTIOFS, DISK, count=10),
    _later("vmstatestorage", _text("pve-storage-id"), DISK),
    # Network
    _option("net", properties.NIC, NETWORK, "nic", count=32),
    # Hardware
    _option("acpi", _flag(True), HARDWARE),
    _option("hotplug", _HOTPLUG, HARDWARE, "stored", later_values=("cpu", "memory", "cloudinit")),
    _option("kvm", _flag(True), HARDWARE),
    _option("machine", properties.MACHINE, HARDWARE),
    _option("rng0", properties.RNG, HARDWARE),
    _option("serial", _text(pattern=r"(/dev/.+|socket)"), HARDWARE, count=4),
    _option("smbios1", properties.SMBIOS, HARDWARE, max_length=512),
    _option("tablet", _flag(True), HARDWARE),
    _option("vga", properties.VGA, HARDWARE),
    _option("vmgenid", _text(pattern=rf"(?:{properties.UUID_PATTERN}|[01])"), ROOT_ONLY),
    _option("watchdog", properties.WATCHDOG, HARDWARE),
    _later("arch", _word("x86_64", "aarch64", default="x86_64"), ROOT_ONLY),
    _later("audio0", properties.AUDIO, HARDWARE),
    _later("hostpci", properties.PCI, HARDWARE, count=16),
    _later("parallel", _text(pattern=r"/dev/parport\d+|/dev/usb/lp\d+"), ROOT_ONLY, count=3),
    _later("spice_enhancements", properties.SPICE, ROOT_ONLY),
    _later("usb", properties.USB, HARDWARE, count=14),
    # Options
    _option("agent", properties.AGENT, OPTIONS),
    _option("autostart", _flag(), OPTIONS, "stored", "not-yet"),
    _option("bios", _word("seabios", "ovmf", default="seabios"), OPTIONS),
    _option("description", _text(longest=8192), OPTIONS, "stored"),
    _option("keyboard", _word(*KEYBOARDS), OPTIONS),
    _option("localtime", _flag(None), OPTIONS),
    _option("migrate_downtime", Scalar(type="number", minimum=0, default=0.1), OPTIONS, "stored", "not-yet"),
    _option("migrate_speed", _integer(0, default=0), OPTIONS, "stored", "not-yet"),
    _option("name", _text("dns-name"), OPTIONS, "stored"),
    _option("onboot", _flag(), OPTIONS, "stored"),
    _option("ostype", _word(*_SYSTEMS, default="other"), OPTIONS),
    _option("protection", _flag(), OPTIONS, "stored"),
    _option("reboot", _flag(True), OPTIONS),
    _option("startdate", Scalar(pattern=_STARTDATE, default="now"), OPTIONS),
    _option("startup", STARTUP, OPTIONS, "stored"),
    _option("tags", _text("pve-tag-list"), OPTIONS, "stored"),
    _option("tdf", _flag(), OPTIONS),
    _later("template", _flag(), OPTIONS),
    _option("freeze", _flag(None), POWER),
    # Only root
    _option("args", _text(), ROOT_ONLY),
    _option("hookscript", _text("pve-volume-id"), ROOT_ONLY, "stored"),
    _option("lock", _word(*_LOCKS), ROOT_ONLY, "stored"),
    # What prepares a guest from inside
    _later("cicustom", properties.CLOUD_INIT_FILES, CLOUDINIT),
    _later("cipassword", _text(), CLOUDINIT),
    _later("citype", _word("configdrive2", "nocloud", "opennebula"), CLOUDINIT),
    _later("ciupgrade", _flag(True), CLOUDINIT),
    _later("ciuser", _text(), CLOUDINIT),
    _later("ipconfig", properties.IP_CONFIG, CLOUDINIT, count=32),
    _later("nameserver", _text("address-list"), CLOUDINIT),
    _later("searchdomain", _text(), CLOUDINIT),
    _later("sshkeys", _text("urlencoded"), CLOUDINIT),
)

MACHINE_OPTIONS: Mapping[str, Option] = {option.name: option for option in _ROWS}
"""All options by name; numbered ones as `net[n]`."""
