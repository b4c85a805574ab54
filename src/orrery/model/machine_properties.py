# SPDX-License-Identifier: AGPL-3.0-or-later
"""Property strings of a machine's options: disks, network cards, processors, displays and the rest.

Keys, words and limits are those of the compatible API. A key marked `not-yet` is known and checked, and refused where
its value is not the default; what is marked `yes` is heeded. That goes for `backup`, `replicate` and `freeze-fs` too:
what their other value forbids is never done, since there are neither backups nor replication.
"""

from collections.abc import Mapping

from orrery.model.properties import address_rule, enum, flag, not_yet
from orrery.model.propertystring import Property, PropertyString, schema
from orrery.model.values import Value

_CPU_LIST = r"\d+(?:-\d+)?(?:;\d+(?:-\d+)?)*"
_BASE64 = r"[A-Za-z0-9+/]+={0,2}|[^=,]+"
_HEX_ID = r"0x[0-9a-fA-F]{4}"
UUID_PATTERN = r"[a-fA-F0-9]{8}(?:-[a-fA-F0-9]{4}){3}-[a-fA-F0-9]{12}"


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NIC_MODELS = _words(
    "e1000 e1000-82540em e1000-82544gc e1000-82545em e1000e i82551 i82557b i82559er"
    " ne2k_isa ne2k_pci pcnet rtl8139 virtio vmxnet3"
)
VGA_TYPES = _words("cirrus qxl qxl2 qxl3 qxl4 none serial0 serial1 serial2 serial3 std virtio virtio-gl vmware")
MACHINE_TYPE = (
    r"(pc|pc(-i440fx)?-\d+(\.\d+)+(\+pve\d+)?(\.pxe)?|q35|pc-q35-\d+(\.\d+)+(\+pve\d+)?(\.pxe)?"
    r"|virt(?:-\d+(\.\d+)+)?(\+pve\d+)?)"
)


# Disks -----------------------------------------------------------------------------------------------------------

_file = Property(format="pve-volume-id-or-qm-path", default_key=True, optional=False)
_image_format = enum("raw", "qcow", "qed", "qcow2", "vmdk", "cloop")
_import_from = Property(format="pve-volume-id-or-absolute-path")
_size = Property(format="disk-size")
_limit = Property(type="integer")
_mbps = Property(type="number")
_seconds = Property(type="integer", minimum=1)
_file_keys = {"file": _file, "volume": Property(alias="file"), "format": _image_format, "size": _size}

_throttle: dict[str, Property] = {}
for _way in ("", "_rd", "_wr"):
    _throttle |= {f"bps{_way}": _limit, f"bps{_way}_max_length": _seconds}
    _throttle |= {f"iops{_way}": _limit, f"iops{_way}_max": _limit, f"iops{_way}_max_length": _seconds}
    _throttle |= {f"mbps{_way}": _mbps, f"mbps{_way}_max": _mbps}
for _name in ("bps_rd", "bps_wr", "iops_rd", "iops_wr"):
    _throttle[f"{_name}_length"] = Property(alias=f"{_name}_max_length")

_disk: dict[str, Property] = {
    **_file_keys,
    **_throttle,
    "aio": enum("native", "threads", "io_uring"),
    "backup": flag(True),
    "cache": enum("none", "writethrough", "writeback", "unsafe", "directsync"),
    "detect_zeroes": flag(),
    "discard": enum("ignore", "on"),
    "import-from": _import_from,
    "media": enum("cdrom", "disk", default="disk"),
    "replicate": flag(True),
    "rerror": enum("ignore", "report", "stop"),
    "serial": Property(max_length=60, format="urlencoded"),
    "shared": not_yet(flag(False)),
    "snapshot": not_yet(flag(False)),
    "werror": enum("enospc", "ignore", "report", "stop"),
}
_ssd = {"ssd": flag(False)}
_wwn = {"wwn": not_yet(Property(pattern=r"0x[0-9a-fA-F]{16}"))}
_threaded = {"iothread": flag(False), "ro": flag(False)}

IDE_DISK = schema(_disk, _ssd, _wwn, {"model": not_yet(Property(max_length=120, format="urlencoded"))})
SATA_DISK = schema(_disk, _ssd, _wwn)
VIRTIO_DISK = schema(_disk, _threaded)
SCSI_DISK = schema(
    _disk,
    _ssd,
    _wwn,
    _threaded,
    {
        "product": not_yet(Property(pattern=r"[A-Za-z0-9_ -]{0,16}")),
        "queues": not_yet(Property(type="integer", minimum=2)),
        "scsiblock": not_yet(flag(False)),
        "vendor": not_yet(Property(pattern=r"[A-Za-z0-9_ -]{0,8}")),
    },
)
EFI_DISK = schema(
    _file_keys,
    {
        "efitype": enum("2m", "4m", default="2m"),
        "import-from": not_yet(_import_from),
        "ms-cert": not_yet(enum("2011", "2023", "2023w", "2023k", default="2011")),
        "pre-enrolled-keys": flag(False),
    },
)
TPM_STATE = schema(
    _file_keys,
    {
        "format": enum("raw", "qcow2", "vmdk"),
        "import-from": _import_from,
        "version": enum("v1.2", "v2.0", default="v1.2"),
    },
)
UNUSED_DISK = schema(
    {"file": Property(format="pve-volume-id", default_key=True, optional=False), "volume": Property(alias="file")}
)

# Network, processor, memory --------------------------------------------------------------------------------------

NIC = schema(
    {model: Property(alias="macaddr", key_alias="model") for model in NIC_MODELS},
    {
        "bridge": Property(format="pve-bridge-id"),
        "firewall": not_yet(flag(False)),
        "link_down": flag(False),
        "macaddr": Property(format="mac-addr"),
        "model": Property(enum=NIC_MODELS, default_key=True, optional=False),
        "mtu": Property(type="integer", minimum=1, maximum=65520),
        "queues": Property(type="integer", minimum=0, maximum=64),
        "rate": Property(type="number", minimum=0),
        "tag": Property(type="integer", minimum=1, maximum=4094),
        "trunks": Property(pattern=_CPU_LIST),
    },
)


def _cpu_rule(values: Mapping[str, Value]) -> None:
    bits = values.get("phys-bits")
    if bits is not None and bits != "host" and not 8 <= int(bits) <= 64:
        raise ValueError("phys-bits must be 'host' or 8 to 64")


CPU = schema(
    {
        "cputype": Property(pattern=r"[A-Za-z0-9][A-Za-z0-9._-]*", max_length=64, default_key=True),
        "flags": Property(pattern=r"[+-][a-zA-Z0-9._-]+(;[+-][a-zA-Z0-9._-]+)*"),
        "guest-phys-bits": not_yet(Property(type="integer", minimum=32, maximum=64)),
        "hidden": not_yet(flag(False)),
        "hv-vendor-id": not_yet(Property(pattern=r"[a-zA-Z0-9]{1,12}")),
        "phys-bits": not_yet(Property(pattern=r"host|\d{1,2}")),
        "reported-model": not_yet(Property(pattern=r"[A-Za-z0-9._-]+")),
    },
    rule=_cpu_rule,
)
MEMORY = schema(
    {"current": Property(type="integer", minimum=16, maximum=67108864, default=512, default_key=True, optional=False)}
)
NUMA_NODE = schema(
    {
        "cpus": Property(pattern=_CPU_LIST, optional=False),
        "hostnodes": Property(pattern=_CPU_LIST),
        "memory": Property(type="number"),
        "policy": enum("preferred", "bind", "interleave"),
    }
)

# The rest of the machine -----------------------------------------------------------------------------------------

AGENT = schema(
    {
        "enabled": Property(type="boolean", default=False, default_key=True, optional=False),
        "freeze-fs": flag(True),
        "freeze-fs-on-backup": Property(alias="freeze-fs"),
        "fstrim_cloned_disks": not_yet(flag(False)),
        "guest-fsfreeze": Property(alias="freeze-fs"),
        "type": enum("virtio", "isa", default="virtio"),
    }
)
AUDIO = schema(
    {
        "device": enum("ich9-intel-hda", "intel-hda", "AC97", optional=False),
        "driver": enum("spice", "none", default="spice"),
    }
)


def _boot_rule(values: Mapping[str, Value]) -> None:
    devices = str(values.get("order", "")).split(";")
    if len(set(devices)) < len(devices):
        raise ValueError("the boot order names a device twice")


_BOOT_DEVICE = r"(?:(?:ide|sata|scsi|virtio|net|usb|hostpci)\d+)"
BOOT = schema(
    {
        "legacy": Property(pattern=r"[acdn]{1,4}", default_key=True),
        "order": Property(pattern=rf"{_BOOT_DEVICE}(?:;{_BOOT_DEVICE})*"),
    },
    rule=_boot_rule,
)
MACHINE = schema(
    {
        "type": Property(pattern=MACHINE_TYPE, max_length=40, default_key=True),
        "aw-bits": not_yet(Property(type="number", minimum=32, maximum=64)),
        "enable-s3": not_yet(flag()),
        "enable-s4": not_yet(flag()),
        "viommu": not_yet(enum("intel", "virtio")),
    }
)
RNG = schema(
    {
        "source": Property(enum=("/dev/urandom", "/dev/random", "/dev/hwrng"), default_key=True, optional=False),
        "max_bytes": Property(type="integer", minimum=0, default=1024),
        "period": Property(type="integer", minimum=1, default=1000),
    }
)
_smbios_text = Property(pattern=_BASE64)
SMBIOS = schema(
    {
        "base64": flag(False),
        "uuid": Property(pattern=UUID_PATTERN),
        **dict.fromkeys(("family", "manufacturer", "product", "serial", "sku", "version"), _smbios_text),
    }
)
VGA = schema(
    {
        "type": Property(
            enum=VGA_TYPES,
            default="std",
            default_key=True,
            later_values=("qxl2", "qxl3", "qxl4", "virtio-gl"),
        ),
        "clipboard": not_yet(enum("vnc")),
        "memory": Property(type="integer", minimum=4, maximum=512),
    }
)
WATCHDOG = schema(
    {
        "model": Property(enum=("i6300esb", "ib700"), default="i6300esb", default_key=True),
        "action": enum("reset", "shutdown", "poweroff", "pause", "debug", "none"),
    }
)
SPICE = schema({"foldersharing": flag(False), "videostreaming": enum("off", "all", "filter", default="off")})
IVSHMEM = schema(
    {"name": Property(pattern=r"[a-zA-Z0-9\-]+"), "size": Property(type="integer", minimum=1, optional=False)}
)

# Passed through from the host, and what prepares a guest: known, not acted on yet -----------------------------------

_USB_HOST = r"(0x)?[0-9A-Fa-f]{4}:(0x)?[0-9A-Fa-f]{4}|\d+-\d+(\.\d+)*|[Ss][Pp][Ii][Cc][Ee]"
_PCI_ID = r"(?:[0-9a-fA-F]{4,}:)?[0-9a-fA-F]{2}:[0-9a-fA-F]{2}(?:\.[0-9a-fA-F])?"
USB = schema(
    {
        "host": Property(pattern=_USB_HOST, default_key=True),
        "mapping": Property(format="pve-configid"),
        "usb3": flag(False),
    }
)
PCI = schema(
    {
        "host": Property(pattern=rf"{_PCI_ID}(;{_PCI_ID})*", default_key=True),
        "driver": enum("vfio", "keep"),
        "legacy-igd": flag(False),
        "mapping": Property(format="pve-configid"),
        "mdev": Property(pattern=r"[^/\s]+"),
        "pcie": flag(False),
        "rombar": flag(True),
        "romfile": Property(pattern=r"[^,;/]+"),
        "x-vga": flag(False),
        **dict.fromkeys(("device-id", "sub-device-id", "sub-vendor-id", "vendor-id"), Property(pattern=_HEX_ID)),
    }
)
VIRTIOFS = schema(
    {
        "dirid": Property(format="pve-configid", default_key=True, optional=False),
        "cache": enum("auto", "always", "metadata", "never", default="auto"),
        **dict.fromkeys(("direct-io", "expose-acl", "expose-xattr"), flag(False)),
    }
)
SEV = schema(
    {
        "type": Property(enum=("std", "es", "snp"), default_key=True, optional=False),
        **dict.fromkeys(("allow-smt", "kernel-hashes", "no-debug", "no-key-sharing"), flag()),
    }
)
TDX = schema(
    {
        "type": Property(enum=("tdx",), default_key=True, optional=False),
        "attestation": flag(True),
        "vsock-cid": Property(type="integer", minimum=2),
        "vsock-port": Property(type="integer", minimum=0),
    }
)
CLOUD_INIT_FILES = schema(dict.fromkeys(("meta", "network", "user", "vendor"), Property(format="pve-volume-id")))


IP_CONFIG = schema(
    {
        "gw": Property(format="ipv4"),
        "gw6": Property(format="ipv6"),
        "ip": Property(format="pve-ipv4-config", default="dhcp"),
        "ip6": Property(format="pve-ipv6-config", default="dhcp"),
    },
    rule=address_rule,
)

MACHINE_FORMATS: dict[str, PropertyString] = {
    "$agent": AGENT,
    "$audio0": AUDIO,
    "$efidisk0": EFI_DISK,
    "$ideN": IDE_DISK,
    "$ivshmem": IVSHMEM,
    "$machine": MACHINE,
    "$memory": MEMORY,
    "$netN": NIC,
    "$numaN": NUMA_NODE,
    "$sataN": SATA_DISK,
    "$scsiN": SCSI_DISK,
    "$spice_enhancements": SPICE,
    "$tpmstate0": TPM_STATE,
    "$unusedN": UNUSED_DISK,
    "$usbN": USB,
    "$vga": VGA,
    "$virtioN": VIRTIO_DISK,
    "$virtiofsN": VIRTIOFS,
    "pve-qemu-sev-fmt": SEV,
    "pve-qemu-tdx-fmt": TDX,
    "pve-qm-boot": BOOT,
    "pve-qm-cicustom": CLOUD_INIT_FILES,
    "pve-qm-hostpci": PCI,
    "pve-qm-ide": IDE_DISK,
    "pve-qm-ipconfig": IP_CONFIG,
    "pve-qm-rng": RNG,
    "pve-qm-smbios1": SMBIOS,
    "pve-qm-watchdog": WATCHDOG,
    "pve-vm-cpu-conf": CPU,
}
"""Schemas by the format's name in the API description; `$` marks those that have no registered name there."""
