# SPDX-License-Identifier: AGPL-3.0-or-later
"""A tree becomes a disk that BIOS and UEFI boot: its parts, looked at by other programs."""

import json
import subprocess
from pathlib import Path

import pytest

from orrery.drivers.images.bootdisk import MEBIBYTE
from orrery.drivers.images.machinedisk import MachineDisk
from orrery.errors import Failure

SIZE = 96 * MEBIBYTE
START = 34 * MEBIBYTE


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    for folder in ("etc", "boot"):
        (root / folder).mkdir(parents=True)
    for name in ("vmlinuz", "initrd.img"):
        (root / f"boot/{name}-6.1").write_text(f"the {name}")
        (root / name).symlink_to(f"boot/{name}-6.1")
    return root


def said(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_the_disk_has_what_both_firmwares_look_for(tree: Path, tmp_path: Path) -> None:
    work, steps = tmp_path / "work", []
    work.mkdir()
    MachineDisk(tree, SIZE).write(tmp_path / "disk.qcow2", work, lambda: steps.append(1))
    assert len(steps) == 3
    raw = tmp_path / "disk.raw"
    said("qemu-img", "convert", "-f", "qcow2", "-O", "raw", tmp_path / "disk.qcow2", raw)
    table = json.loads(said("sfdisk", "-J", raw))["partitiontable"]
    assert table["label"] == "gpt"
    places = {each["node"].removeprefix(str(raw)): (each["start"], each["type"]) for each in table["partitions"]}
    assert places["14"] == (2048, "21686148-6449-6E6F-744E-656564454649")
    assert places["15"] == (4096, "C12A7328-F81F-11D2-BA4B-00A0C93EC93B")
    assert places["1"][0] * 512 == START
    content = raw.read_bytes()
    assert content[:440] != bytes(440)
    assert int.from_bytes(content[0x5C:0x64], "little") == 2048
    assert int.from_bytes(content[2048 * 512 + 0x1F4 :][:8], "little") == 2049
    program = subprocess.run(
        ["mtype", "-i", f"{raw}@@2M", "::EFI/BOOT/BOOTX64.EFI"], capture_output=True, check=True
    ).stdout
    assert program[:2] == b"MZ"
    (tmp_path / "root.ext4").write_bytes(content[START:])
    menu = said("debugfs", "-R", "cat /boot/grub/grub.cfg", tmp_path / "root.ext4")
    uuid = said("blkid", "-o", "value", "-s", "UUID", tmp_path / "root.ext4").strip()
    assert f"linux$bits /vmlinuz root=UUID={uuid} ro" in menu
    assert said("debugfs", "-R", "cat /etc/fstab", tmp_path / "root.ext4").startswith(f"UUID={uuid} / ext4 ")
    assert subprocess.run(["e2fsck", "-nf", tmp_path / "root.ext4"], capture_output=True, check=False).returncode == 0


def test_a_system_without_a_kernel(tree: Path, tmp_path: Path) -> None:
    (tree / "initrd.img").unlink()
    with pytest.raises(Failure, match=r"no '/initrd\.img'"):
        MachineDisk(tree, SIZE).write(tmp_path / "disk.qcow2", tmp_path)
    assert not (tmp_path / "disk.qcow2").exists()
