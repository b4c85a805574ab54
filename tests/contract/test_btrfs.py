# SPDX-License-Identifier: AGPL-3.0-or-later
"""What storages of type btrfs do beyond the contract."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.contract.storages import MIB, everything

from orrery.drivers.storage import subvolumes
from orrery.drivers.storage.base import StorageDriver
from orrery.drivers.storage.registry import build
from orrery.errors import Failure, NotFound

pytestmark = pytest.mark.root


@pytest.fixture(params=["btrfs"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def attributes(path: Path) -> str:
    done = subprocess.run(["lsattr", "-d", path], capture_output=True, check=True)
    return done.stdout.decode().split()[0]


def test_lies_as_proxmox_has_it(driver: StorageDriver, root: Path) -> None:
    assert (driver.kind, driver.container_formats, driver.sized_folders) == ("btrfs", ("subvol",), True)
    driver.allocate("100/vm-100-disk-0.raw", MIB)
    driver.allocate("100/vm-100-disk-1.qcow2", MIB)
    driver.allocate("100/subvol-100-disk-2.subvol", 16 * MIB)
    guest = root / "images/100"
    assert driver.path("100/vm-100-disk-0.raw") == guest / "vm-100-disk-0/disk.raw"
    assert driver.path("100/vm-100-disk-1.qcow2") == guest / "vm-100-disk-1.qcow2"
    assert driver.path("100/subvol-100-disk-2.subvol") == guest / "subvol-100-disk-2.subvol"
    assert subvolumes.is_subvolume(guest / "vm-100-disk-0")
    assert subvolumes.is_subvolume(guest / "subvol-100-disk-2.subvol")
    assert not subvolumes.is_subvolume(guest)
    assert (guest / "vm-100-disk-0").stat().st_mode & 0o777 == 0o700
    (guest / "vm-100-disk-7.raw").write_bytes(b"a plain file is no volume here")
    (guest / "vm-100-disk-8").symlink_to("vm-100-disk-0")
    assert [info.volid.partition("/")[2] for info in driver.list({"images"})] == [
        *("subvol-100-disk-2.subvol", "vm-100-disk-0.raw", "vm-100-disk-1.qcow2")
    ]
    with pytest.raises(NotFound):
        driver.info("100/vm-100-disk-8.raw")


@pytest.mark.parametrize(("nocow", "marked"), [("1", True), ("0", False)])
def test_written_in_place_on_demand(make: Callable[..., StorageDriver], nocow: str, marked: bool) -> None:
    driver = make(nocow=nocow)
    for name in ("100/vm-100-disk-0.raw", "100/vm-100-disk-1.qcow2"):
        driver.allocate(name, MIB)
        assert ("C" in attributes(driver.path(name))) == marked


def test_use_is_known(driver: StorageDriver) -> None:
    name = "100/subvol-100-disk-0.subvol"
    driver.allocate(name, 64 * MIB)
    with (driver.path(name) / "file").open("wb") as stream:
        stream.write(os.urandom(8 * MIB))
        os.fsync(stream.fileno())
    subprocess.run(["btrfs", "filesystem", "sync", driver.path(name)], check=True, capture_output=True)
    for info in (driver.info(name), *driver.list({"rootdir"})):
        assert info.size == 64 * MIB
        assert 8 * MIB <= info.used <= 10 * MIB


def test_limits_can_come_later_but_not_shrink(driver: StorageDriver) -> None:
    name = "100/subvol-100-disk-0.subvol"
    driver.allocate(name, 0)
    with pytest.raises(Failure, match="no limit"):
        driver.resize(name, 64 * MIB)
    with pytest.raises(Failure, match="at least"):
        driver.allocate("100/subvol-100-disk-1.subvol", 1000)


def test_subvolumes_within_go_too(driver: StorageDriver, root: Path) -> None:
    """Everybody may make subvolumes in folders of their own: also root of a container."""
    name = "100/subvol-100-disk-0.subvol"
    driver.allocate(name, 0)
    tree = driver.path(name)
    for command in (
        ["subvolume", "create", tree / "a"],
        ["subvolume", "create", tree / "a/b"],
        ["subvolume", "snapshot", "-r", tree / "a", tree / "frozen"],
    ):
        subprocess.run(["btrfs", *map(str, command)], check=True, capture_output=True)
    (tree / "a/b/file").write_bytes(b"x")
    driver.free(name)
    assert everything(root) == set()


def test_only_on_btrfs(tmp_path: Path) -> None:
    driver = build("tank", {"type": "btrfs", "path": str(tmp_path / "s"), "content": "images"}, "n1")
    with pytest.raises(Failure, match="does not lie on btrfs; mount one there"):
        driver.activate()
