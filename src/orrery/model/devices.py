# SPDX-License-Identifier: AGPL-3.0-or-later
"""Typed views of a machine: what its options mean, with defaults filled in where they are the same everywhere."""

import base64
import binascii
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Self, TypeVar

from orrery.errors import ParameterError
from orrery.model.ballooning import DEFAULT_SHARES
from orrery.model.cloudinit import is_drive as is_cloudinit
from orrery.model.cpu import CpuModel, Topology
from orrery.model.disks import BUSES, Disk, EfiDisk, parse_disk, parse_efi_disk
from orrery.model.guest import GuestConfig
from orrery.model.machine import expand_indexed
from orrery.model.machine_changes import hotplug_features
from orrery.model.machine_properties import AGENT, BOOT, MACHINE, MEMORY, NIC, RNG, SMBIOS, VGA, WATCHDOG
from orrery.model.properties import STARTUP

MAC_PREFIX = "BC:24:11"
WINDOWS = frozenset(("wxp", "w2k", "w2k3", "w2k8", "wvista", "win7", "win8", "win10", "win11"))

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Nic:
    """A network card. `mac` in upper case; `rate` in MB/s; `trunks`: VLAN ranges, both ends included."""

    model: str
    index: int = 0
    mac: str | None = None
    bridge: str | None = None
    tag: int | None = None
    trunks: tuple[tuple[int, int], ...] = ()
    rate: float | None = None
    firewall: bool = False
    link_down: bool = False
    queues: int | None = None
    mtu: int | None = None


@dataclass(frozen=True, slots=True)
class Serial:
    """A serial port; `device` is a device of the host, None for a socket."""

    index: int
    device: str | None = None


@dataclass(frozen=True, slots=True)
class Vga:
    """The display; `memory` in MiB. Type `serialN` means that a serial port is the display."""

    type: str = "std"
    memory: int | None = None


@dataclass(frozen=True, slots=True)
class Rng:
    """A source of entropy: at most `max_bytes` per `period` milliseconds (0 bytes: no limit)."""

    source: str
    max_bytes: int = 1024
    period: int = 1000


@dataclass(frozen=True, slots=True)
class Agent:
    """The guest agent's channel. `freeze_fs`: whether file systems are frozen for consistent copies."""

    enabled: bool = False
    type: str = "virtio"
    freeze_fs: bool = True


@dataclass(frozen=True, slots=True)
class Watchdog:
    """A watchdog card and what it does when it barks (None: QEMU's default)."""

    model: str = "i6300esb"
    action: str | None = None


@dataclass(frozen=True, slots=True)
class Startup:
    """Place in the order of starting, seconds to wait after it, seconds it has for shutting down."""

    order: int | None = None
    up: int | None = None
    down: int | None = None


@dataclass(frozen=True, slots=True)
class Smbios:
    """Identity of the machine as its firmware tells it. `fields`: manufacturer, product, …, decoded."""

    uuid: str | None = None
    fields: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class MachineType:
    """Chipset and version. `version` is None while it is not pinned, `name` what was written (None: nothing)."""

    name: str | None = None

    @property
    def is_q35(self) -> bool:
        """Whether the chipset is q35 rather than i440fx."""
        return self.name is not None and self.name.removeprefix("pc-").startswith("q35")

    @property
    def version(self) -> str | None:
        """The pinned version, `9.2`."""
        match = re.search(r"-(\d+(?:\.\d+)+)", self.name or "")
        return match[1] if match else None

    @property
    def qemu_name(self) -> str:
        """The name that QEMU knows: without what marks revisions of other products."""
        alias = "q35" if self.is_q35 else "pc"
        name = re.sub(r"\+pve\d+|\.pxe$", "", self.name or alias)
        return re.sub(r"^pc-(?=\d)", "pc-i440fx-", name)

    def pinned(self, version: str) -> Self:
        """The same chipset at a version; one that is pinned already stays as it is."""
        if self.version is not None:
            return self
        return type(self)(f"pc-{'q35' if self.is_q35 else 'i440fx'}-{version}")


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineView:
    """All of a machine. Memory in MiB; `localtime` follows the kind of system.

    `balloon`: the least that the guest may be left with, None: as much as memory. With `shares` 0 it has just that.
    """

    name: str | None
    ostype: str
    topology: Topology
    cpu: CpuModel
    affinity: str | None
    memory: int
    balloon: int | None
    shares: int
    disks: tuple[Disk, ...]
    nics: tuple[Nic, ...]
    serials: tuple[Serial, ...]
    vga: Vga
    rng: Rng | None
    agent: Agent
    watchdog: Watchdog | None
    boot: tuple[str, ...]
    machine: MachineType
    bios: str
    efi: EfiDisk | None
    smbios: Smbios
    vmgenid: str | None
    scsihw: str
    keyboard: str | None
    acpi: bool
    tablet: bool
    kvm: bool
    localtime: bool
    startdate: str
    freeze: bool
    reboot: bool
    tdf: bool
    args: str | None
    hotplug: frozenset[str]

    @property
    def is_windows(self) -> bool:
        """Whether the guest's system is said to be Windows."""
        return self.ostype in WINDOWS

    def disk(self, key: str) -> Disk | None:
        """The disk of that name."""
        return next((disk for disk in self.disks if disk.key == key), None)


def machine_devices(config: GuestConfig) -> MachineView:
    """The current options of a machine as typed views; ParameterError names the option that cannot be read."""
    options = config.options

    def read(key: str, parse: Callable[[str], _T], default: _T) -> _T:
        return _named(key, parse, options[key]) if key in options else default

    def flag(key: str, default: bool) -> bool:
        return options[key] == "1" if key in options else default

    ostype = options.get("ostype", "other")
    return MachineView(
        name=options.get("name"),
        ostype=ostype,
        topology=_named("sockets", Topology.of, options),
        cpu=read("cpu", CpuModel.parse, CpuModel()),
        affinity=options.get("affinity"),
        memory=read("memory", parse_memory, 512),
        balloon=read("balloon", int, None),
        shares=read("shares", int, DEFAULT_SHARES),
        disks=_disks(options),
        nics=tuple(_named(key, parse_nic, text, index) for key, index, text in _each(options, "net")),
        serials=tuple(Serial(index, None if text == "socket" else text) for _, index, text in _each(options, "serial")),
        vga=read("vga", parse_vga, Vga()),
        rng=read("rng0", parse_rng, None),
        agent=read("agent", parse_agent, Agent()),
        watchdog=read("watchdog", parse_watchdog, None),
        boot=_named("boot", boot_order, options),
        machine=read("machine", parse_machine_type, MachineType()),
        bios=options.get("bios", "seabios"),
        efi=read("efidisk0", parse_efi_disk, None),
        smbios=read("smbios1", parse_smbios, Smbios()),
        vmgenid=options.get("vmgenid"),
        scsihw=options.get("scsihw", "lsi"),
        keyboard=options.get("keyboard"),
        acpi=flag("acpi", True),
        tablet=flag("tablet", True),
        kvm=flag("kvm", True),
        localtime=flag("localtime", ostype in WINDOWS),
        startdate=options.get("startdate", "now"),
        freeze=flag("freeze", False),
        reboot=flag("reboot", True),
        tdf=flag("tdf", False),
        args=options.get("args"),
        hotplug=hotplug_features(options),
    )


def parse_nic(text: str, index: int = 0) -> Nic:
    """Read the option `netN`; ValueError when the text is none."""
    values = NIC.parse(text, f"net{index}")
    return Nic(
        model=str(values["model"]),
        index=index,
        mac=str(values["macaddr"]).upper() if "macaddr" in values else None,
        bridge=str(values["bridge"]) if "bridge" in values else None,
        tag=int(values["tag"]) if "tag" in values else None,
        trunks=_ranges(str(values.get("trunks", ""))),
        rate=float(values["rate"]) if "rate" in values else None,
        firewall=bool(values.get("firewall", False)),
        link_down=bool(values.get("link_down", False)),
        queues=int(values["queues"]) if "queues" in values else None,
        mtu=int(values["mtu"]) if "mtu" in values else None,
    )


def parse_memory(text: str) -> int:
    """Read the option `memory`: MiB."""
    return int(MEMORY.parse(text, "memory")["current"])


def parse_vga(text: str) -> Vga:
    """Read the option `vga`."""
    values = VGA.parse(text, "vga")
    return Vga(str(values.get("type", "std")), int(values["memory"]) if "memory" in values else None)


def parse_rng(text: str) -> Rng:
    """Read the option `rng0`."""
    values = RNG.parse(text, "rng0")
    return Rng(str(values["source"]), int(values.get("max_bytes", 1024)), int(values.get("period", 1000)))


def parse_agent(text: str) -> Agent:
    """Read the option `agent`."""
    values = AGENT.parse(text, "agent")
    return Agent(bool(values["enabled"]), str(values.get("type", "virtio")), bool(values.get("freeze-fs", True)))


def parse_watchdog(text: str) -> Watchdog:
    """Read the option `watchdog`."""
    values = WATCHDOG.parse(text, "watchdog")
    return Watchdog(str(values.get("model", "i6300esb")), str(values["action"]) if "action" in values else None)


def parse_startup(text: str) -> Startup:
    """Read the option `startup`."""
    values = STARTUP.parse(text, "startup")
    order, up, down = (int(values[key]) if key in values else None for key in ("order", "up", "down"))
    return Startup(order, up, down)


def parse_machine_type(text: str) -> MachineType:
    """Read the option `machine`."""
    values = MACHINE.parse(text, "machine")
    return MachineType(str(values["type"]) if "type" in values else None)


def parse_smbios(text: str) -> Smbios:
    """Read the option `smbios1`; ValueError also for Base64 that is none."""
    values = SMBIOS.parse(text, "smbios1")
    fields = {key: str(value) for key, value in values.items() if key not in ("uuid", "base64")}
    if values.get("base64"):
        try:
            fields = {key: base64.b64decode(value, validate=True).decode() for key, value in fields.items()}
        except (binascii.Error, UnicodeDecodeError):
            raise ValueError("smbios1 says base64=1, but a field is not Base64 of a text") from None
    return Smbios(str(values["uuid"]) if "uuid" in values else None, fields)


def boot_order(options: Mapping[str, str]) -> tuple[str, ...]:
    """Devices in the order in which the firmware tries them: as `boot` says, else the default order.

    The old form `boot: cdn` (hard disk, CD-ROM, network) with `bootdisk` is understood too.
    """
    values = BOOT.parse(options.get("boot", ""), "boot")
    if "order" in values:
        return tuple(str(values["order"]).split(";"))
    if "legacy" not in values and "bootdisk" not in options:
        return default_boot_order(options)
    hard, optical, cards = _bootable(options)
    disk = options.get("bootdisk")
    kinds = {"c": [disk] if disk in options and disk else hard[:1], "d": optical, "n": cards}
    found = [device for letter in str(values.get("legacy", "cdn")) for device in kinds.get(letter, [])]
    return tuple(dict.fromkeys(found))


def default_boot_order(options: Mapping[str, str]) -> tuple[str, ...]:
    """The first hard disk, the first CD-ROM drive, the first network card, as far as there are any."""
    return tuple(devices[0] for devices in _bootable(options) if devices)


def random_mac(random: bytes, prefix: str = MAC_PREFIX) -> str:
    """A MAC address from a prefix of one to three octets and as many random bytes as it needs (three for three)."""
    octets = [octet.upper() for octet in prefix.strip(":").split(":")]
    missing = 6 - len(octets)
    if len(random) < missing:
        raise ValueError(f"{missing} random bytes are needed after the prefix '{prefix}'")
    return ":".join([*octets, *(f"{byte:02X}" for byte in random[:missing])])


def _named(key: str, parse: Callable[..., _T], *arguments: object) -> _T:
    try:
        return parse(*arguments)
    except ValueError as error:
        raise ParameterError({key: str(error)}, f"the machine's option '{key}' cannot be read: {error}") from None


def _each(options: Mapping[str, str], base: str) -> list[tuple[str, int, str]]:
    """Numbered options of one kind, in the order of their numbers."""
    found = [(expand_indexed(key), key) for key in options if key.startswith(base)]
    return sorted(
        ((key, indexed[1], options[key]) for indexed, key in found if indexed and indexed[0] == base),
        key=lambda each: each[1],
    )


def _disks(options: Mapping[str, str]) -> tuple[Disk, ...]:
    return tuple(_named(key, parse_disk, key, text) for bus in BUSES for key, _, text in _each(options, bus))


def _bootable(options: Mapping[str, str]) -> tuple[list[str], list[str], list[str]]:
    disks = _disks(options)
    return (
        [disk.key for disk in disks if not disk.is_cdrom and not is_cloudinit(options[disk.key])],
        [disk.key for disk in disks if disk.is_cdrom and not is_cloudinit(options[disk.key])],
        [key for key, _, _ in _each(options, "net")],
    )


def _ranges(text: str) -> tuple[tuple[int, int], ...]:
    found: list[tuple[int, int]] = []
    for part in text.split(";"):
        if part:
            low, _, high = part.partition("-")
            found.append((int(low), int(high or low)))
    return tuple(found)
