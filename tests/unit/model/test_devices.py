# SPDX-License-Identifier: AGPL-3.0-or-later
"""Typed views of a machine's options."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orrery.errors import ParameterError
from orrery.model.cpu import CpuModel
from orrery.model.devices import (
    Agent,
    MachineType,
    Nic,
    Rng,
    Serial,
    Smbios,
    Startup,
    Vga,
    Watchdog,
    boot_order,
    default_boot_order,
    machine_devices,
    parse_agent,
    parse_nic,
    parse_smbios,
    parse_startup,
    parse_watchdog,
    random_mac,
)
from orrery.model.disks import parse_disk, parse_efi_disk
from orrery.model.guest import GuestConfig
from orrery.model.textformats import check_text_format
from orrery.model.volume import VolumeId

OPTIONS = {
    "name": "web",
    "ostype": "win11",
    "cores": "2",
    "memory": "2048",
    "balloon": "0",
    "scsihw": "virtio-scsi-single",
    "scsi10": "local:100/vm-100-disk-1.raw",
    "scsi2": "local:100/vm-100-disk-0.qcow2,iothread=1,size=32G",
    "ide2": "local:iso/x.iso,media=cdrom",
    "sata0": "none,media=cdrom",
    "net1": "e1000,bridge=vmbr1",
    "net0": "virtio=bc:24:11:aa:00:01,bridge=vmbr0,tag=5,rate=12.5,queues=4,firewall=1,mtu=1500,trunks=1-4;7",
    "serial0": "socket",
    "serial1": "/dev/ttyS0",
    "vga": "serial0",
    "rng0": "/dev/urandom,max_bytes=0",
    "agent": "1,type=isa",
    "machine": "pc-q35-9.2+pve1",
    "bios": "ovmf",
    "efidisk0": "local:100/vm-100-disk-2.raw,efitype=4m,pre-enrolled-keys=1,size=528K",
    "hotplug": "disk",
    "watchdog": "ib700,action=reset",
}


def test_a_whole_machine() -> None:
    view = machine_devices(GuestConfig(OPTIONS))
    assert [disk.key for disk in view.disks] == ["scsi2", "scsi10", "sata0", "ide2"]
    assert view.nics == (
        Nic(
            model="virtio",
            index=0,
            mac="BC:24:11:AA:00:01",
            bridge="vmbr0",
            tag=5,
            trunks=((1, 4), (7, 7)),
            rate=12.5,
            firewall=True,
            queues=4,
            mtu=1500,
        ),
        Nic(model="e1000", index=1, bridge="vmbr1"),
    )
    assert view.serials == (Serial(0), Serial(1, "/dev/ttyS0"))
    assert (view.vga, view.rng, view.agent) == (Vga("serial0"), Rng("/dev/urandom", 0), Agent(True, "isa"))
    assert (view.memory, view.balloon, view.topology.total, view.cpu) == (2048, 0, 2, CpuModel())
    assert view.boot == ("scsi2", "sata0", "net0")
    assert (view.is_windows, view.localtime, view.acpi, view.kvm, view.tablet) == (True, True, True, True, True)
    assert view.machine.is_q35
    assert view.machine.qemu_name == "pc-q35-9.2"
    assert view.watchdog == Watchdog("ib700", "reset")
    assert view.efi is not None
    assert (view.efi.type, view.efi.size, view.efi.pre_enrolled_keys) == ("4m", 528 << 10, True)
    assert view.hotplug == {"disk"}
    disk = view.disk("scsi2")
    assert disk is not None
    assert (disk.size, disk.iothread, disk.is_cdrom, disk.index) == (32 << 30, True, False, 2)
    assert view.disk("scsi3") is None


def test_defaults() -> None:
    view = machine_devices(GuestConfig())
    assert (view.memory, view.balloon, view.bios, view.scsihw, view.boot) == (512, None, "seabios", "lsi", ())
    assert (view.rng, view.watchdog, view.efi, view.vga, view.startdate) == (None, None, None, Vga(), "now")
    assert view.machine == MachineType()
    assert not view.is_windows
    assert not view.localtime


@pytest.mark.parametrize(
    ("key", "text"), [("net0", "foo"), ("scsi0", ""), ("memory", "x"), ("smbios1", "base64=1,sku=%")]
)
def test_what_cannot_be_read_is_named(key: str, text: str) -> None:
    with pytest.raises(ParameterError, match=f"option '{key}' cannot be read") as caught:
        machine_devices(GuestConfig({key: text}))
    assert list(caught.value.errors) == [key]


def test_disks() -> None:
    disk = parse_disk(
        "virtio3",
        "local:100/vm-100-disk-0.raw,cache=none,aio=io_uring,discard=on,ro=1,backup=0,serial=a%20b,werror=stop,"
        "detect_zeroes=0,mbps_rd=1.5,mbps_rd_max=3,bps_rd_length=4,iops=100,bps_wr=1000,format=raw",
    )
    assert (disk.bus, disk.index, disk.volume) == ("virtio", 3, VolumeId("local", "100/vm-100-disk-0.raw"))
    assert (disk.cache, disk.aio, disk.discard, disk.readonly, disk.backup) == ("none", "io_uring", True, True, False)
    assert (disk.serial, disk.werror, disk.rerror, disk.detect_zeroes) == ("a b", "stop", None, False)
    assert disk.throttle == {
        "bps-read": 1572864,
        "bps-read-max": 3145728,
        "bps-read-max-length": 4,
        "iops-total": 100,
        "bps-write": 1000,
    }
    assert parse_disk("ide2", "none").is_empty
    assert parse_disk("ide2", "none").is_cdrom
    assert parse_disk("ide2", "cdrom").host_drive
    assert parse_disk("scsi0", "/dev/sdb").path == "/dev/sdb"
    assert parse_disk("scsi0", "local:0,import-from=local:import/x.raw").import_from == "local:import/x.raw"
    assert parse_efi_disk("/dev/sdb").path == "/dev/sdb"
    for key in ("net0", "scsi", "unused0", "efidisk0"):
        with pytest.raises(ValueError, match="is not a disk"):
            parse_disk(key, "local:1")


def test_small_ones() -> None:
    assert parse_agent("enabled=0") == Agent()
    assert parse_startup("2,down=60") == Startup(2, None, 60)
    assert parse_watchdog("action=none") == Watchdog("i6300esb", "none")
    encoded = base64.b64encode("Räck, 7".encode()).decode()
    assert parse_smbios(f"base64=1,product={encoded}") == Smbios(None, {"product": "Räck, 7"})
    assert parse_smbios("product=x") == Smbios(None, {"product": "x"})


@pytest.mark.parametrize(
    ("name", "q35", "version", "qemu", "pinned"),
    [
        (None, False, None, "pc", "pc-i440fx-9.2"),
        ("pc", False, None, "pc", "pc-i440fx-9.2"),
        ("q35", True, None, "q35", "pc-q35-9.2"),
        ("pc-q35-8.1+pve2", True, "8.1", "pc-q35-8.1", "pc-q35-8.1+pve2"),
        ("pc-i440fx-7.2", False, "7.2", "pc-i440fx-7.2", "pc-i440fx-7.2"),
        ("pc-7.2.pxe", False, "7.2", "pc-i440fx-7.2", "pc-7.2.pxe"),
    ],
)
def test_machine_types(name: str | None, q35: bool, version: str | None, qemu: str, pinned: str) -> None:
    machine = MachineType(name)
    assert (machine.is_q35, machine.version, machine.qemu_name) == (q35, version, qemu)
    assert machine.pinned("9.2").name == pinned


def test_boot_orders() -> None:
    assert boot_order({"boot": "order=net0;scsi1"}) == ("net0", "scsi1")
    assert boot_order(OPTIONS) == default_boot_order(OPTIONS) == ("scsi2", "sata0", "net0")
    assert boot_order(OPTIONS | {"boot": "dc", "bootdisk": "scsi10"}) == ("sata0", "ide2", "scsi10")
    assert boot_order(OPTIONS | {"bootdisk": "scsi10"}) == ("scsi10", "sata0", "ide2", "net0", "net1")
    assert boot_order(OPTIONS | {"boot": "c", "bootdisk": "scsi9"}) == ("scsi2",)
    assert boot_order({}) == ()


@given(st.binary(min_size=5, max_size=8), st.sampled_from(["BC:24:11", "bc:24:11:", "02", "02:AA"]))
def test_random_macs(random: bytes, prefix: str) -> None:
    mac = random_mac(random, prefix)
    assert check_text_format("mac-addr", mac) == mac
    assert mac.startswith(prefix.strip(":").upper())
    assert parse_nic(f"virtio={mac}").mac == mac
    assert random_mac(b"\x00\x01\xff") == "BC:24:11:00:01:FF"
    with pytest.raises(ValueError, match="random bytes"):
        random_mac(b"\x00")


@given(st.dictionaries(st.sampled_from(sorted(OPTIONS)), st.text(max_size=20) | st.sampled_from([*OPTIONS.values()])))
def test_any_options_are_read_or_named(options: dict[str, str]) -> None:
    named: list[str] = []
    try:
        machine_devices(GuestConfig(options))
    except ParameterError as refused:
        named = list(refused.errors)
    assert all(key in options or key in ("sockets", "boot") for key in named)
