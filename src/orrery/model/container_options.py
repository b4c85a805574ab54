# SPDX-License-Identifier: AGPL-3.0-or-later
"""The table of a container's options: those of the compatible API, and our own `idmap` and `affinity`.

Who may change what follows the compatible API; where that reserves an option to root, so does this table. Features,
mount points and maps of ids need more or less depending on the value (`orrery.model.container`).
"""

from orrery.model import container_properties as properties
from orrery.model.guest_options import (
    CPU,
    DISK,
    MEMORY,
    NETWORK,
    OPTIONS,
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
from orrery.model.values import Scalar

MOUNT_POINTS, DEVICES, NICS, UNUSED = 256, 256, 32, 256
DISTRIBUTIONS = (
    *("debian", "devuan", "ubuntu", "centos", "fedora", "opensuse", "archlinux", "alpine", "gentoo", "nixos"),
    "unmanaged",
)
DEFAULT_MEMORY = 512
"""MiB of memory, and of swap, that a container may use when nothing is said."""

_ARCHITECTURES = ("amd64", "i386", "arm64", "armhf", "riscv32", "riscv64")
_LOCKS = ("backup", "create", "destroyed", "disk", "fstrim", "migrate", "mounted", "rollback", "snapshot")
_ENVIRONMENT = r"\w+=[^\x00-\x1F\x7F]*(?:\x00\w+=[^\x00-\x1F\x7F]*)*"

_ROWS: tuple[Option, ...] = (
    # Processor and memory
    option("affinity", text("pve-cpuset"), ROOT_ONLY, "live"),
    option("cores", integer(1, 8192), CPU, "live"),
    option("cpulimit", Scalar(type="number", minimum=0, maximum=8192, default=0.0), CPU, "live"),
    option("cpuunits", integer(0, 500000), CPU, "live"),
    option("memory", integer(16, default=DEFAULT_MEMORY), MEMORY, "live"),
    option("swap", integer(0, default=DEFAULT_MEMORY), MEMORY, "live"),
    # Files and devices
    option("rootfs", properties.ROOTFS, DISK),
    option("mp", properties.MOUNT_POINT, DISK, "disk", count=MOUNT_POINTS),
    option("dev", properties.PASSED_DEVICE, ROOT_ONLY, "device", count=DEVICES),
    option("unused", properties.UNUSED_VOLUME, DISK, "stored", count=UNUSED),
    # Network
    option("hostname", Scalar(format="dns-name", max_length=255), NETWORK),
    option("nameserver", text("lxc-ip-with-ll-iface-list"), NETWORK),
    option("net", properties.CONTAINER_NIC, NETWORK, "nic", count=NICS),
    option("searchdomain", text("dns-name-list"), NETWORK),
    # What it is and what runs in it
    option("arch", word(*_ARCHITECTURES, default="amd64"), OPTIONS),
    option("cmode", word("shell", "console", "tty", default="tty"), OPTIONS),
    option("console", flag(True), OPTIONS),
    option("entrypoint", Scalar(pattern=r"[^\x00-\x1F\x7F]+", max_length=4096, default="/sbin/init"), OPTIONS),
    option("env", Scalar(pattern=_ENVIRONMENT, max_length=65536), OPTIONS),
    option("features", properties.FEATURES, OPTIONS),
    option("idmap", Scalar(max_length=16384, default="shared"), OPTIONS),
    option("ostype", word(*DISTRIBUTIONS), OPTIONS),
    option("timezone", text("pve-ct-timezone"), OPTIONS),
    option("tty", integer(0, 6, 2), OPTIONS),
    option("unprivileged", flag(), OPTIONS),
    # Options
    option("debug", flag(), OPTIONS, "stored"),
    option("description", text(longest=8192), OPTIONS, "stored"),
    option("onboot", flag(), OPTIONS, "stored"),
    option("protection", flag(), OPTIONS, "stored"),
    option("startup", STARTUP, OPTIONS, "stored"),
    option("tags", text("pve-tag-list"), OPTIONS, "stored"),
    later("template", flag(), OPTIONS),
    # Only root
    option("hookscript", text("pve-volume-id"), ROOT_ONLY, "stored"),
    option("lock", word(*_LOCKS, "snapshot-delete"), ROOT_ONLY, "stored"),
)

CONTAINER_OPTIONS = OptionTable(_ROWS)
"""All options by name; numbered ones as `net[n]`."""
