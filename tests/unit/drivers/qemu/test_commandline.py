# SPDX-License-Identifier: AGPL-3.0-or-later
"""What is refused before a machine is started, versions of machine types, and images that are based on others."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.golden.qemu_cases import EMULATED, KVM, volumes_of

from orrery.drivers.qemu.commandline import build, machine_type
from orrery.drivers.qemu.devices import disk
from orrery.drivers.qemu.layout import Chipset, Layout
from orrery.drivers.qemu.plan import TapFds, VolumeFile
from orrery.errors import Failure, ParameterError
from orrery.model.devices import machine_devices
from orrery.model.disks import parse_disk
from orrery.model.guest import GuestConfig


def config(text: str) -> GuestConfig:
    return GuestConfig.from_text(text)


def plan_error(text: str, *, volumes: bool = True) -> str:
    made = config(text)
    with pytest.raises(Failure) as caught:
        build(100, made, EMULATED, volumes_of(made, Path("/storage")) if volumes else {}, {0: TapFds((7,))})
    return caught.value.message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("scsi0: local:100/a.raw,aio=native,cache=writeback", "aio=native needs cache=none"),
        ("virtio0: none,media=cdrom", "only a CD-ROM drive on ide, sata or scsi can be empty"),
        ("ide2: cdrom,media=cdrom", "host's CD-ROM drive is not supported"),
        ("net0: virtio,bridge=vmbr0", "'net0' has no MAC address"),
        ("vga: serial1", "no such serial port"),
        ("machine: q35\nnet31: rtl8139=BC:24:11:00:00:01,bridge=vmbr0", "no place for 'net31'"),
        ("agent: 1,type=isa\nserial0: socket\nserial1: socket\nserial2: socket\nserial3: socket", "uses all four"),
        ("args: -device 'x", "'args' cannot be taken apart: No closing quotation"),
        ("machine: pc-q35-9.2", "needs QEMU 9.2 or newer, this node has 7.2.22"),
    ],
)
def test_what_cannot_be_built_is_named(text: str, words: str) -> None:
    assert words in plan_error(text + "\n")


def test_volumes_must_be_given() -> None:
    assert "'scsi0': its volume was not opened" in plan_error("scsi0: local:100/a.raw\n", volumes=False)
    text = "bios: ovmf\nefidisk0: local:100/a.raw,efitype=4m\n"
    assert "'efidisk0': its volume was not opened" in plan_error(text, volumes=False)


def test_unreadable_options_are_named() -> None:
    with pytest.raises(ParameterError) as caught:
        build(100, config("net0: nonsense=1\n"), EMULATED)
    assert "net0" in " ".join(caught.value.errors)


@pytest.mark.parametrize(
    ("machine", "meta", "expected"),
    [
        ("", "", "pc-i440fx-7.2"),
        ("pc", "creation-qemu=7.1.0,ctime=1", "pc-i440fx-7.1"),
        ("q35", "creation-qemu=6.2.0", "pc-q35-6.2"),
        ("q35", "ctime=1,creation-qemu=10.1.2", "pc-q35-7.2"),
        ("pc-q35-6.0", "creation-qemu=7.2.0", "pc-q35-6.0"),
        ("pc-i440fx-7.2+pve0", "", "pc-i440fx-7.2"),
    ],
)
def test_machine_keeps_its_version(machine: str, meta: str, expected: str) -> None:
    options = {key: value for key, value in (("machine", machine), ("meta", meta)) if value}
    view = machine_devices(GuestConfig(options=options))
    assert machine_type(view, meta or None, EMULATED).qemu_name == expected


def test_a_newer_qemu_does_not_change_a_machine() -> None:
    newer = replace(EMULATED, version="10.1.2")
    meta = "creation-qemu=7.2.22,ctime=1"
    view = machine_devices(config("machine: q35\n"))
    assert machine_type(view, meta, newer).qemu_name == "pc-q35-7.2"
    assert machine_type(view, None, newer).qemu_name == "pc-q35-10.1"


def blockdev(volume: VolumeFile) -> tuple[dict[str, Any], list[Any]]:
    plan = build(100, config("scsi0: local:100/a.qcow2\n"), EMULATED, {"scsi0": volume})
    node = next(json.loads(value) for option, value in pairwise(plan.argv) if option == "-blockdev")
    return node, [each for each in plan.descriptors if type(each).__name__ == "OpenFile"]


def test_images_below_are_named_by_us_and_never_written() -> None:
    base = VolumeFile(Path("/s/base.raw"), "raw")
    middle = VolumeFile(Path("/s/middle.qcow2"), "qcow2", backing=base)
    node, files = blockdev(VolumeFile(Path("/s/top.qcow2"), "qcow2", backing=middle))
    assert [(each.path.name, each.writable) for each in files] == [
        ("top.qcow2", True),
        ("middle.qcow2", False),
        ("base.raw", False),
    ]
    below = node["backing"]
    assert (below["driver"], below["read-only"], below["file"]["read-only"]) == ("qcow2", True, True)
    assert below["backing"]["driver"] == "raw"
    assert "backing" not in below["backing"]
    names = [node["node-name"], below["node-name"], below["backing"]["node-name"]]
    assert len(set(names)) == 3
    assert all(len(name) < 32 for name in names)


def test_an_image_alone_has_nothing_below() -> None:
    node, _ = blockdev(VolumeFile(Path("/s/top.qcow2"), "qcow2"))
    assert node["backing"] is None


def test_a_read_only_volume_is_opened_so() -> None:
    node, files = blockdev(VolumeFile(Path("/s/top.qcow2"), "qcow2", read_only=True))
    assert (node["read-only"], node["file"]["read-only"], files[0].writable) == (True, True, False)


@pytest.mark.parametrize(
    ("limits", "fine"),
    [
        ("mbps=10", True),
        ("mbps=10,mbps_max=20", True),
        ("mbps_rd=10,mbps_wr=20", True),
        ("mbps=10,mbps_rd=5", False),
        ("iops=10,iops_wr=5", False),
        ("mbps_max=20", False),
        ("mbps=20,mbps_max=10", False),
        ("iops=20,iops_max_length=10", False),
    ],
)
def test_limits_that_clash_are_refused(limits: str, fine: bool) -> None:
    drive = parse_disk("scsi0", f"local:100/a.raw,{limits}")
    if fine:
        assert disk.throttle(drive).arguments["id"] == "scsi0"
    else:
        with pytest.raises(Failure, match="'scsi0'"):
            disk.throttle(drive)


def test_the_same_configuration_gives_the_same_plan() -> None:
    made = config("agent: 1\nscsi0: local:100/a.qcow2\nserial0: socket\n")
    plans = [build(100, made, KVM, volumes_of(made, Path("/s"))) for _ in range(2)]
    assert plans[0] == plans[1]


ALL_NAMES = [
    *("vga", "balloon0", "watchdog", "ahci0", "serialbus", "rng0", "usb"),
    *(f"net{n}" for n in range(32)),
    *(f"virtio{n}" for n in range(16)),
]


@pytest.mark.parametrize("chipset", ["i440fx", "q35"])
@pytest.mark.parametrize("controllers", [[f"scsihw{n}" for n in range(5)], [f"scsisingle{n}" for n in range(31)]])
def test_every_device_has_a_place_of_its_own(chipset: Chipset, controllers: list[str]) -> None:
    layout = Layout(chipset)
    names = [*ALL_NAMES, *controllers]
    single = ["scsisingle"] if "scsisingle0" in names else []
    buses = layout.buses(names, legacy=True, kinds=["net", "virtio", *single])
    places = [layout.place(name) for name in names] + [bus for bus in buses if "addr" in bus]
    found = [(place["bus"], place["addr"]) for place in places]
    assert len(set(found)) == len(found)
    known = {"pci.0", "pcie.0", *(bus["id"] for bus in buses)}
    assert {bus for bus, _ in found} <= known


@given(st.sets(st.sampled_from(ALL_NAMES)), st.sampled_from(ALL_NAMES))
def test_a_device_does_not_move_when_others_come(names: set[str], name: str) -> None:
    for chipset in ("i440fx", "q35"):
        layout = Layout(chipset)
        before = layout.place(name)
        buses = {each["id"]: each for each in layout.buses({name}, legacy=False, kinds=["net", "virtio"])}
        more = {each["id"]: each for each in layout.buses(names | {name}, legacy=False, kinds=["net", "virtio"])}
        assert layout.place(name) == before
        assert all(more[bus] == place for bus, place in buses.items())


@pytest.mark.parametrize(
    ("options", "cache", "aio", "noted"),
    [
        ("", False, "io_uring", True),
        (",cache=none,aio=native", False, "threads", True),
        (",cache=directsync", False, "io_uring", True),
        (",cache=writeback", False, "io_uring", False),
    ],
)
def test_a_file_system_without_direct_access(options: str, cache: bool, aio: str, noted: bool) -> None:
    text = f"scsi0: local:100/vm-100-disk-0.raw,size=1G{options}\n"
    volumes = {"scsi0": VolumeFile(Path("/x.raw"), "raw", direct=False)}
    plan = build(100, config(text), KVM, volumes)
    node = next(json.loads(word) for word in plan.argv if '"drive-scsi0"' in word and '"raw"' in word)
    assert node["cache"]["direct"] is node["file"]["cache"]["direct"] is cache
    assert node["file"]["aio"] == aio
    assert any("direct access" in note for note in plan.notes) is noted
    devices = [json.loads(word) for word in plan.argv if '"scsi-hd"' in word]
    assert (devices[0].get("write-cache") == "off") is ("directsync" in options)
