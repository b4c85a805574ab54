# SPDX-License-Identifier: AGPL-3.0-or-later
"""A container whose root is a subvolume with a limit: root inside can neither write beyond it nor get around it."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.lab.lxc_lab import Lab, make_tree

from orrery.drivers.storage.base import StorageDriver
from orrery.drivers.storage.registry import build
from orrery.system import mounts
from orrery.system.mounts import ContainerMount, Folder

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]
PYTHON = "/usr/bin/python3"
MIB = 1 << 20

ATTEMPTS = """
import ctypes, errno, json, os, struct
libc = ctypes.CDLL(None, use_errno=True)
told, top = {}, os.open("/", os.O_RDONLY)

def old(source, name):
    return struct.pack("=q4088s", source, name)

def new(source, name):
    return struct.pack("=qQQ32x4040s", source, 0, 0, name)

def call(name, number, data):
    for wide in (number, number | 7 << 32):  # the kernel looks at the lower half alone
        made = libc.syscall(ctypes.c_long(16), ctypes.c_long(top), ctypes.c_ulong(wide), data)
        told.setdefault(name, []).append("MADE" if made == 0 else errno.errorcode[ctypes.get_errno()])

call("create", 0x5000940E, old(0, b"a"))
call("create2", 0x50009418, new(0, b"b"))
call("snapshot", 0x50009401, old(top, b"c"))
call("snapshot2", 0x50009417, new(top, b"d"))
size = 0
try:
    with open("/fill", "wb", buffering=0) as stream:
        while size < 128 << 20:
            size += stream.write(os.urandom(1 << 20))
        os.fsync(stream.fileno())
except OSError as error:
    told["fill"] = errno.errorcode[error.errno]
print(json.dumps({**told, "size": size}))
"""


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[StorageDriver]:
    """A storage on a btrfs in a file."""
    image, top = tmp_path / "btrfs.img", tmp_path / "top"
    top.mkdir()
    with image.open("wb") as stream:
        stream.truncate(1 << 30)
    subprocess.run(["mkfs.btrfs", "-q", image], check=True, capture_output=True)
    with mounts.aside():
        subprocess.run(["mount", "-o", "loop", image, top], check=True)
        driver = build("pool", {"type": "btrfs", "path": str(top / "pool"), "content": "rootdir"}, "n1")
        driver.activate()
        yield driver


def test_limit_holds_for_root_inside(lxc: Lab, storage: StorageDriver, tmp_path: Path) -> None:
    if not Path(PYTHON).exists():
        pytest.skip("needs the system's own Python")
    name = "650/subvol-650-disk-0.subvol"
    storage.allocate(name, 64 * MIB)
    shutil.copytree(make_tree(tmp_path / "tree"), storage.path(name), symlinks=True, dirs_exist_ok=True)
    for library in ("lib", "lib64"):
        (storage.path(name) / library).symlink_to(f"usr/{library}")
    usr = ContainerMount("mp0", Folder(Path("/usr"), recursive=False), "/usr", read_only=True, mapped=False)
    lxc.start(650, Folder(storage.path(name), recursive=False), usr)
    try:
        done = lxc.run(650, PYTHON, "-c", ATTEMPTS)
        assert done.returncode == 0, done
        told = json.loads(done.text)
        assert told.pop("fill") == "EDQUOT"
        assert 32 * MIB < told.pop("size") <= 64 * MIB
        refused = {each: ["EPERM", "EPERM"] for each in ("create", "create2", "snapshot", "snapshot2")}
        assert told == refused
        assert storage.info(name).used <= 64 * MIB
    finally:
        lxc.driver.discard(650)
    storage.free(name)
    assert storage.list({"rootdir"}) == []
