# SPDX-License-Identifier: AGPL-3.0-or-later
import gzip
import os
import subprocess
from pathlib import Path

import pytest

from orrery.demo.archive import initial_ramdisk


def members(data: bytes) -> dict[str, tuple[int, bytes]]:
    """Name to mode and data, read by the format's definition."""
    found: dict[str, tuple[int, bytes]] = {}
    at = 0
    while True:
        assert at % 4 == 0
        assert data[at : at + 6] == b"070701"
        fields = [int(data[at + 6 + 8 * index : at + 14 + 8 * index], 16) for index in range(13)]
        mode, size, name_size = fields[1], fields[6], fields[11]
        name = data[at + 110 : at + 110 + name_size - 1].decode()
        at += 110 + name_size
        at += -at % 4
        if name == "TRAILER!!!":
            return found
        found[name] = (mode, data[at : at + size])
        at += size
        at += -at % 4


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "bin").mkdir(parents=True)
    (root / "bin/sh").write_bytes(b"\x7fELF")
    (root / "bin/sh").chmod(0o755)
    (root / "init").symlink_to("bin/sh")
    (root / "empty").touch()
    return root


def test_files_folders_and_links_come_back(tree: Path) -> None:
    found = members(gzip.decompress(initial_ramdisk(tree)))
    assert found["bin"][0] & 0o170000 == 0o040000
    assert found["bin/sh"] == (0o100755, b"\x7fELF")
    assert found["init"] == (0o120777, b"bin/sh")
    assert found["empty"][1] == b""
    assert list(found).index("bin") < list(found).index("bin/sh")


def test_the_same_tree_gives_the_same_bytes(tree: Path) -> None:
    first = initial_ramdisk(tree)
    os.utime(tree / "bin/sh", (1, 1))
    assert initial_ramdisk(tree) == first


def test_devices_are_refused(tree: Path) -> None:
    subprocess.run(["mkfifo", tree / "pipe"], check=True)
    with pytest.raises(ValueError, match="neither file, folder nor link"):
        initial_ramdisk(tree)
