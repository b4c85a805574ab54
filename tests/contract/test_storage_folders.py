# SPDX-License-Identifier: AGPL-3.0-or-later
"""What every storage driver must do with folders, the trees of containers, and with their limits."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.contract.storages import MIB, child, everything

from orrery.drivers.storage import filesystem
from orrery.drivers.storage.base import StorageDriver
from orrery.errors import AlreadyExists, Failure, NotFound, NotSupported


def new_folder(driver: StorageDriver, size: int = 0, vmid: int = 100) -> str:
    name = driver.next_name(vmid, "subvol")
    driver.allocate(name, size)
    return name


def test_folder_is_found(driver: StorageDriver) -> None:
    assert driver.container_formats[0] in ("raw", "subvol")
    assert "subvol" in driver.container_formats
    name = new_folder(driver)
    assert name == "100/subvol-100-disk-0.subvol"
    info = driver.info(name)
    assert (info.volid, info.content, info.format, info.vmid) == (f"tank:{name}", "images", "subvol", 100)
    assert info.size == 0
    assert abs(info.ctime - time.time()) < 60
    for contents in ({"images"}, {"rootdir"}, {"images", "rootdir"}):
        assert driver.list(contents) == [info]
    assert driver.list({"rootdir"}, 101) == driver.list({"iso"}) == []
    state = driver.path(name).stat()
    assert (state.st_mode & 0o7777, state.st_uid, state.st_gid) == (0o755, os.getuid(), os.getgid())
    assert list(driver.path(name).iterdir()) == []


def test_folders_and_images_share_their_numbers(driver: StorageDriver) -> None:
    driver.allocate("100/vm-100-disk-0.raw", MIB)
    assert new_folder(driver) == "100/subvol-100-disk-1.subvol"
    assert driver.next_name(100, "qcow2") == "100/vm-100-disk-2.qcow2"
    with pytest.raises(AlreadyExists):
        driver.allocate("100/subvol-100-disk-1.subvol", 0)


def test_only_promised_sizes(driver: StorageDriver, root: Path) -> None:
    if driver.sized_folders:
        name = new_folder(driver, 64 * MIB)
        assert driver.info(name).size == 64 * MIB
        driver.resize(name, 128 * MIB)
        driver.resize(name, 128 * MIB)
        assert driver.info(name).size == driver.list({"rootdir"})[0].size == 128 * MIB
        with pytest.raises(Failure, match="shrink"):
            driver.resize(name, 64 * MIB)
        assert driver.info(name).size == 128 * MIB
        return
    with pytest.raises(Failure, match="67108864 bytes here; ask for size 0"):
        new_folder(driver, 64 * MIB)
    assert everything(root) == set()
    name = new_folder(driver)
    with pytest.raises(Failure, match="cannot limit"):
        driver.resize(name, 64 * MIB)


@pytest.mark.parametrize("size", [-1, 1 << 62])
def test_absurd_sizes_of_folders_are_refused(driver: StorageDriver, root: Path, size: int) -> None:
    with pytest.raises(Failure):
        new_folder(driver, size)
    assert everything(root) == set()


def test_missing_folders(driver: StorageDriver, tmp_path: Path) -> None:
    name = "100/subvol-100-disk-0.subvol"
    with pytest.raises(NotFound):
        driver.info(name)
    with pytest.raises(NotFound):
        driver.resize(name, MIB)
    with pytest.raises(NotSupported):
        driver.copy_in(tmp_path, "raw", name)
    driver.free(name)


def test_a_folder_is_no_image(driver: StorageDriver) -> None:
    tree = driver.path(new_folder(driver))
    for trusted in (False, True):
        with pytest.raises(NotSupported, match="folder cannot become"):
            driver.copy_in(tree, "subvol", "100/vm-100-disk-1.raw", trusted=trusted)
    assert len(driver.list({"images"})) == 1


def test_names_must_fit_what_they_name(driver: StorageDriver) -> None:
    """A file is no folder and a folder no image, whatever they are called; links are nothing."""
    folder = new_folder(driver)
    driver.allocate("100/vm-100-disk-1.raw", MIB)
    place = driver.path(folder).parent
    (place / "subvol-100-disk-5.subvol").write_bytes(b"")
    (place / "vm-100-disk-6.qcow2").mkdir()
    (place / "subvol-100-disk-7.subvol").symlink_to(driver.path(folder))
    assert {info.volid for info in driver.list({"images"})} == {f"tank:{folder}", "tank:100/vm-100-disk-1.raw"}
    for name in ("subvol-100-disk-5.subvol", "vm-100-disk-6.qcow2", "subvol-100-disk-7.subvol"):
        with pytest.raises(NotFound):
            driver.info(f"100/{name}")
    driver.free("100/subvol-100-disk-7.subvol")
    assert driver.info(folder).format == "subvol"


def test_freed_folder_takes_everything_with_it_and_nothing_else(
    driver: StorageDriver, root: Path, tmp_path: Path
) -> None:
    """Deeper than Python's recursion, with links to the outside and names that no program expects."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_bytes(b"stays")
    name = new_folder(driver)
    tree = driver.path(name)
    (tree / "link").symlink_to(outside)
    (tree / "etc").symlink_to("/etc")
    (tree / "-rf\n").mkdir(mode=0)
    (tree / "-rf\n" / "x").write_bytes(b"")
    deep = os.open(tree, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=deep)
        below = os.open("d", os.O_RDONLY, dir_fd=deep)
        os.close(deep)
        deep = below
    os.close(deep)
    driver.free(name)
    driver.free(name)
    assert everything(root) == set()
    assert (outside / "file").read_bytes() == b"stays"


@pytest.mark.root
def test_folder_that_cannot_be_removed_at_once(driver: StorageDriver, root: Path) -> None:
    name = new_folder(driver)
    fixed = driver.path(name) / "fixed"
    fixed.write_bytes(b"")
    marked = subprocess.run(["chattr", "+i", fixed], capture_output=True, check=False)
    if marked.returncode:
        pytest.skip("this file system has no immutable files")
    driver.free(name)
    assert everything(root) == set()


def test_removal_that_was_cut_off_is_finished(driver: StorageDriver, root: Path) -> None:
    name = new_folder(driver)
    for number in range(100):
        (driver.path(name) / str(number)).write_bytes(b"")
    images = driver.path(name).parent.parent
    driver.path(name).rename(images / ".staging.n1.0123456789abcdef.4194000.1")
    driver.activate()
    assert everything(root) == set()


@pytest.mark.root
def test_full_disk(tmp_path: Path) -> None:
    """Where no more folder can be made."""
    code = """
    from orrery.errors import OrreryError
    driver.activate()
    for number in range(1000):
        try:
            driver.allocate(driver.next_name(100, "subvol"), 0)
        except OrreryError as error:
            print(error.code, error.message)
            break
    print(number, len(driver.list({"rootdir"})), [p.name for p in driver.path("100/x.raw").parents[1].glob(".*")])
    """
    root = tmp_path / "small"
    root.mkdir()
    script = 'mount -t tmpfs -o size=1m,nr_inodes=50 small "$1" && shift && exec "$@"'
    shell = ("unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", str(root))
    run = child("dir", root, code, shell)
    out, _ = run.communicate(timeout=60)
    said, counted = out.decode().splitlines()[-2:]
    assert said.startswith("no-space not enough space on storage 'tank'")
    made, listed, left = counted.split(" ", 2)
    assert made == listed
    assert left == "[]"


FILL = """
import errno, os, sys
size = 0
with open(sys.argv[1] + "/fill", "wb", buffering=0) as stream:
    try:
        while size < 128 << 20:
            size += stream.write(os.urandom(1 << 20))
        os.fsync(stream.fileno())
    except OSError as error:
        print(errno.errorcode[error.errno], end=" ")
print(size)
"""


@pytest.mark.root
def test_promised_sizes_hold(driver: StorageDriver, tmp_path: Path) -> None:
    """Whatever a container writes, there is an end to it; and room up to nearly there."""
    size = 64 * MIB
    for image_format in driver.container_formats:
        if image_format == "subvol" and not driver.sized_folders:
            continue
        name = driver.next_name(100, image_format)
        filesystem.make_volume(driver, name, size)
        tree = driver.path(name)
        prefix: list[str] = []
        if image_format != "subvol":
            tree = tmp_path / "mounted"
            tree.mkdir()
            script = 'mount -o loop "$1" "$2" && shift 2 && exec "$@"'
            shell = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh"]
            prefix = [*shell, str(driver.path(name)), str(tree)]
        done = subprocess.run([*prefix, sys.executable, "-c", FILL, str(tree)], capture_output=True, check=True)
        reason, written = done.stdout.decode().split()
        assert reason in ("ENOSPC", "EDQUOT")
        assert size // 2 < int(written) <= size
        grown = size + 32 * MIB
        filesystem.grow_volume(driver, name, grown)
        assert driver.info(name).size == grown
        more = subprocess.run([*prefix, sys.executable, "-c", FILL, str(tree)], capture_output=True, check=True)
        assert int(written) < int(more.stdout.decode().split()[1]) <= grown
