# SPDX-License-Identifier: AGPL-3.0-or-later
"""The table of a virtual machine's options.

Who may change what follows the compatible API; where that reserves an option to root, so does this table.
"""

from orrery.model import machine_properties as properties
from orrery.model.guest_options import (
    CDROM,
    CLOUDINIT,
    CPU,
    DISK,
    HARDWARE,
    MEMORY,
    NETWORK,
    OPTIONS,
    POWER,
    ROOT_ONLY,
    Option,
    OptionTable,
    flag,
    integer,
    later,
    option,
    text,
    word,
)
from orrery.model.properties import STARTUP
from orrery.model.textformats import HOTPLUG_DEFAULT
from orrery.model.values import Scalar

KEYBOARDS = (
    *("de", "de-ch", "da", "en-gb", "en-us", "es", "fi", "fr", "fr-be", "fr-ca", "fr-ch", "hu", "is", "it", "ja", "lt"),
    *("mk", "nl", "no", "pl", "pt", "pt-br", "sv", "sl", "tr"),
)


_STARTDATE = r"(now|\d{4}-\d{1,2}-\d{1,2}(T\d{1,2}:\d{1,2}:\d{1,2})?)"
_HOTPLUG = Scalar(format="pve-hotplug-features", default=",".join(HOTPLUG_DEFAULT))
_LOCKS = ("backup", "clone", "create", "migrate", "rollback", "snapshot", "snapshot-delete", "suspending", "suspended")
_SCSI_CONTROLLERS = ("lsi", "lsi53c810", "virtio-scsi-pci", "virtio-scsi-single", "megasas", "pvscsi")
_SYSTEMS = ("other", "wxp", "w2k", "w2k3", "w2k8", "wvista", "win7", "win8", "win10", "win11", "l24", "l26", "solaris")

_ROWS: tuple[Option, ...] = (
    # Processor and memory
    option("affinity", text("pve-cpuset"), ROOT_ONLY),
    option("cores", integer(1, default=1), CPU),
    option("cpu", properties.CPU, CPU),
    option("cpulimit", Scalar(type="number", minimum=0, maximum=128, default=0.0), CPU, "live"),
    option("cpuunits", integer(1, 262144), CPU, "live"),
    option("numa", flag(), CPU),
    option("sockets", integer(1, default=1), CPU),
    option("vcpus", integer(1), CPU),
    option("balloon", integer(0), MEMORY, "live"),
    option("memory", properties.MEMORY, MEMORY),
    option("shares", integer(0, 50000, 1000), MEMORY, "live"),
    later("smp", integer(1, default=1), CPU),
    later("numa", properties.NUMA_NODE, CPU, count=8),
    later("allow-ksm", flag(True), MEMORY),
    later("hugepages", word("any", "2", "1024"), ROOT_ONLY),
    later("keephugepages", flag(), ROOT_ONLY),
    later("ivshmem", properties.IVSHMEM, ROOT_ONLY),
    later("amd-sev", properties.SEV, ROOT_ONLY),
    later("intel-tdx", properties.TDX, ROOT_ONLY),
    # Disks; what a user needs depends on whether it is a CD-ROM
    option("boot", properties.BOOT, DISK),
    option("bootdisk", text("pve-qm-bootdisk"), DISK),
    option("cdrom", properties.IDE_DISK, CDROM, "disk"),
    option("efidisk0", properties.EFI_DISK, DISK),
    option("ide", properties.IDE_DISK, DISK, "disk", count=4),
    option("sata", properties.SATA_DISK, DISK, "disk", count=6),
    option("scsi", properties.SCSI_DISK, DISK, "disk", count=31),
    option("virtio", properties.VIRTIO_DISK, DISK, "disk", count=16),
    option("scsihw", word(*_SCSI_CONTROLLERS, default="lsi"), HARDWARE),
    option("unused", properties.UNUSED_DISK, DISK, "stored", count=256),
    later("tpmstate0", properties.TPM_STATE, DISK),
    later("virtiofs", properties.VIRTIOFS, DISK, count=10),
    later("vmstatestorage", text("pve-storage-id"), DISK),
    # Network
    option("net", properties.NIC, NETWORK, "nic", count=32),
    # Hardware
    option("acpi", flag(True), HARDWARE),
    option("hotplug", _HOTPLUG, HARDWARE, "stored", later_values=("cpu", "memory")),
    option("kvm", flag(True), HARDWARE),
    option("machine", properties.MACHINE, HARDWARE),
    option("rng0", properties.RNG, HARDWARE),
    option("serial", text(pattern=r"(/dev/.+|socket)"), HARDWARE, count=4),
    option("smbios1", properties.SMBIOS, HARDWARE, max_length=512),
    option("tablet", flag(True), HARDWARE),
    option("vga", properties.VGA, HARDWARE),
    option("vmgenid", text(pattern=rf"(?:{properties.UUID_PATTERN}|[01])"), ROOT_ONLY),
    option("watchdog", properties.WATCHDOG, HARDWARE),
    later("arch", word("x86_64", "aarch64", default="x86_64"), ROOT_ONLY),
    later("audio0", properties.AUDIO, HARDWARE),
    later("hostpci", properties.PCI, HARDWARE, count=16),
    later("parallel", text(pattern=r"/dev/parport\d+|/dev/usb/lp\d+"), ROOT_ONLY, count=3),
    later("spice_enhancements", properties.SPICE, ROOT_ONLY),
    later("usb", properties.USB, HARDWARE, count=14),
    # Options
    option("agent", properties.AGENT, OPTIONS),
    option("autostart", flag(), OPTIONS, "stored", "not-yet"),
    option("bios", word("seabios", "ovmf", default="seabios"), OPTIONS),
    option("description", text(longest=8192), OPTIONS, "stored"),
    option("keyboard", word(*KEYBOARDS), OPTIONS),
    option("localtime", flag(None), OPTIONS),
    option("migrate_downtime", Scalar(type="number", minimum=0, default=0.1), OPTIONS, "stored", "not-yet"),
    option("migrate_speed", integer(0, default=0), OPTIONS, "stored", "not-yet"),
    option("name", text("dns-name"), OPTIONS, "stored"),
    option("onboot", flag(), OPTIONS, "stored"),
    option("ostype", word(*_SYSTEMS, default="other"), OPTIONS),
    option("protection", flag(), OPTIONS, "stored"),
    option("reboot", flag(True), OPTIONS),
    option("startdate", Scalar(pattern=_STARTDATE, default="now"), OPTIONS),
    option("startup", STARTUP, OPTIONS, "stored"),
    option("tags", text("pve-tag-list"), OPTIONS, "stored"),
    option("tdf", flag(), OPTIONS),
    later("template", flag(), OPTIONS),
    option("freeze", flag(None), POWER),
    # Only root
    option("args", text(), ROOT_ONLY),
    option("hookscript", text("pve-volume-id"), ROOT_ONLY, "stored"),
    option("lock", word(*_LOCKS), ROOT_ONLY, "stored"),
    # What prepares a guest from inside
    option("cicustom", properties.CLOUD_INIT_FILES, CLOUDINIT, "stored"),
    option("cipassword", text(), CLOUDINIT, "stored", secret=True),
    option("citype", word("configdrive2", "nocloud", "opennebula"), CLOUDINIT, "stored"),
    option("ciupgrade", flag(True), CLOUDINIT, "stored"),
    option("ciuser", text(), CLOUDINIT, "stored"),
    option("ipconfig", properties.IP_CONFIG, CLOUDINIT, "stored", count=32),
    option("nameserver", text("address-list"), CLOUDINIT, "stored"),
    option("searchdomain", text(), CLOUDINIT, "stored"),
    option("sshkeys", text("urlencoded"), CLOUDINIT, "stored"),
)

MACHINE_OPTIONS = OptionTable(_ROWS)
"""All options by name; numbered ones as `net[n]`."""
