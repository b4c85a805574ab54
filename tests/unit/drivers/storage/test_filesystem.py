# SPDX-License-Identifier: AGPL-3.0-or-later
"""File systems in images, by the real programs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from orrery.drivers.storage import filesystem
from orrery.drivers.storage.directory import DirectoryStorage
from orrery.errors import AlreadyExists, Failure, NotFound

MIB = 1 << 20

pytestmark = pytest.mark.root


def image(path: Path, size: int) -> Path:
    path.touch(mode=0o600)
    os.truncate(path, size)
    return path


def described(path: Path) -> dict[str, str]:
    out = subprocess.run(["dumpe2fs", "-h", path], capture_output=True, check=True).stdout.decode()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in out.splitlines())}


@pytest.fixture
def storage(tmp_path: Path) -> DirectoryStorage:
    driver = DirectoryStorage("tank", {"type": "dir", "path": str(tmp_path / "tank"), "content": "rootdir"}, "n1")
    driver.activate()
    return driver


def test_made_and_grown(tmp_path: Path) -> None:
    path = image(tmp_path / "x.raw", 64 * MIB)
    filesystem.make(path, "100-disk-0-with-a-long-name")
    facts = described(path)
    assert facts["Filesystem volume name"] == "100-disk-0-with-"
    assert facts["Reserved block count"] == "0"
    assert facts["Errors behavior"] == "Remount read-only"
    assert facts["Block count"] == str(64 * MIB // 4096)
    assert path.stat().st_blocks * 512 < 8 * MIB, "tables were written out"
    assert (path.stat().st_uid, path.stat().st_mode & 0o777) == (os.getuid(), 0o600)
    os.truncate(path, 128 * MIB)
    filesystem.grow(path)
    filesystem.grow(path)
    assert described(path)["Block count"] == str(128 * MIB // 4096)
    filesystem.check(path)


def test_reservation_is_kept(tmp_path: Path) -> None:
    path = image(tmp_path / "x.raw", 0)
    with path.open("wb") as stream:
        os.posix_fallocate(stream.fileno(), 0, 32 * MIB)
    filesystem.make(path)
    assert path.stat().st_blocks * 512 >= 32 * MIB


def test_what_is_no_file_system(tmp_path: Path) -> None:
    path = tmp_path / "x.raw"
    path.write_bytes(os.urandom(16 * MIB))
    with pytest.raises(Failure, match=r"^e2fsck failed: .*Bad magic number.*x\.raw"):
        filesystem.grow(path)
    with pytest.raises(Failure, match="too small"):
        filesystem.make(image(tmp_path / "small", MIB))
    with pytest.raises(NotFound):
        filesystem.make(tmp_path / "absent")


def test_mounted_images_are_left_alone(tmp_path: Path) -> None:
    path = image(tmp_path / "x.raw", 16 * MIB)
    filesystem.make(path)
    script = 'mount -o loop "$1" "$2" && echo mounted && read x'
    (tmp_path / "mnt").mkdir()
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", path, tmp_path / "mnt"]
    with subprocess.Popen([*map(str, command)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"mounted\n"
        for act in (filesystem.make, filesystem.check, filesystem.grow):
            with pytest.raises(Failure, match="is mounted"):
                act(path)
        holder.stdin.close()
    filesystem.check(path)


def test_volumes_of_containers(storage: DirectoryStorage) -> None:
    name = storage.next_name(100, "raw")
    filesystem.make_volume(storage, name, 16 * MIB)
    assert described(storage.path(name))["Filesystem volume name"] == "100-disk-0"
    with pytest.raises(AlreadyExists):
        filesystem.make_volume(storage, name, 16 * MIB)
    filesystem.grow_volume(storage, name, 32 * MIB)
    assert described(storage.path(name))["Block count"] == str(32 * MIB // 4096)
    folder = storage.next_name(100, "subvol")
    filesystem.make_volume(storage, folder, 0)
    assert list(storage.path(folder).iterdir()) == []
    with pytest.raises(Failure, match="too small"):
        filesystem.make_volume(storage, "100/vm-100-disk-7.raw", MIB)
    assert {info.volid for info in storage.list({"rootdir"})} == {f"tank:{name}", f"tank:{folder}"}


def test_full_disk(tmp_path: Path) -> None:
    """Not enough room for the tables: the words say so, and the volume is gone."""
    script = """
import sys
from pathlib import Path
from orrery.drivers.storage import filesystem
from orrery.drivers.storage.directory import DirectoryStorage
from orrery.errors import NoSpace
driver = DirectoryStorage("tank", {"type": "dir", "path": sys.argv[1], "content": "rootdir"}, "n1")
driver.activate()
try:
    filesystem.make_volume(driver, "100/vm-100-disk-0.raw", 8 << 30)
except NoSpace as error:
    print(error.message)
print([str(path) for path in Path(sys.argv[1]).rglob("*") if path.is_file()])
"""
    mount = 'mount -t tmpfs -o size=1m small "$1" && exec "$2" -c "$3" "$1"'
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", mount, "sh"]
    (tmp_path / "small").mkdir()
    done = subprocess.run(
        [*command, tmp_path / "small", sys.executable, script], capture_output=True, check=True, timeout=120
    )
    lines = done.stdout.decode().splitlines()
    assert any("no space left" in line for line in lines), done
    assert lines[-1] == "[]"
