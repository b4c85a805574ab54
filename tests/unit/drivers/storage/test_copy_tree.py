# SPDX-License-Identifier: AGPL-3.0-or-later
"""Trees copied from one volume to another, by the real programs."""

import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from orrery.drivers.storage.copy_tree import copy_tree
from orrery.errors import Failure

pytestmark = pytest.mark.root

NET_BIND = bytes.fromhex("0100000200040000000000000000000000000000")
MIB = 1 << 20


@pytest.fixture
def old(tmp_path: Path) -> Path:
    made = tmp_path / "old"
    made.mkdir(mode=0o751)
    return made


@pytest.fixture
def new(tmp_path: Path) -> Path:
    made = tmp_path / "new"
    made.mkdir()
    return made


def test_everything_is_kept(old: Path, new: Path) -> None:
    (old / "etc").mkdir()
    (old / "etc/shadow").write_bytes(b"secret")
    os.chown(old / "etc/shadow", 70_000, 42)
    (old / "etc/shadow").chmod(0)
    (old / "su").write_bytes(b"su")
    (old / "su").chmod(0o6755)
    os.link(old / "su", old / "copy")
    os.setxattr(old / "su", "security.capability", NET_BIND)
    (old / "out").symlink_to("/etc/passwd")
    (old / "line\nbreak -x").write_bytes(b"odd")
    (old / "holes").touch()
    os.truncate(old / "holes", 512 * MIB)
    os.utime(old / "su", (1, 1_000_000_000))
    os.mknod(old / "gone", stat.S_IFCHR, 0)  # a whiteout
    (old / "lost+found").mkdir()
    (new / "lost+found").mkdir(mode=0o700)
    copy_tree(old, new)
    assert new.stat().st_mode & 0o7777 == 0o751
    shadow = (new / "etc/shadow").stat()
    assert (shadow.st_uid, shadow.st_gid, shadow.st_mode & 0o7777) == (70_000, 42, 0)
    su = (new / "su").stat()
    assert (su.st_mode & 0o7777, su.st_nlink, su.st_mtime) == (0o6755, 2, 1_000_000_000)
    assert os.getxattr(new / "su", "security.capability") == NET_BIND
    assert (new / "out").readlink() == Path("/etc/passwd")
    assert (new / "line\nbreak -x").read_bytes() == b"odd"
    holes = (new / "holes").stat()
    assert (holes.st_size, holes.st_blocks * 512 < MIB) == (512 * MIB, True)
    gone = (new / "gone").lstat()
    assert (stat.S_ISCHR(gone.st_mode), gone.st_rdev) == (True, 0)
    assert (new / "lost+found").stat().st_mode & 0o7777 == 0o700


def test_what_is_no_file_is_left_behind(old: Path, new: Path) -> None:
    os.mknod(old / "disk", stat.S_IFBLK | 0o600, os.makedev(8, 0))
    os.mkfifo(old / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        before = Path.cwd()
        os.chdir(old)
        try:
            listener.bind("socket")
        finally:
            os.chdir(before)
    (old / "file").write_bytes(b"x")
    notes: list[str] = []
    copy_tree(old, new, log=notes.append)
    assert sorted(path.name for path in new.iterdir()) == ["file", "pipe"]
    assert notes == ["left out './disk': it is a device, which containers get otherwise"]


def test_full(old: Path, new: Path) -> None:
    (old / "big").write_bytes(bytes(range(256)) * (4 * MIB // 256))
    script = "import sys; from pathlib import Path; from orrery.drivers.storage.copy_tree import copy_tree\n"
    script += "from orrery.errors import NoSpace\n"
    script += (
        "try:\n  copy_tree(Path(sys.argv[1]), Path(sys.argv[2]))\nexcept NoSpace as error:\n  print(error.message)"
    )
    mount = 'mount -t tmpfs -o size=1m small "$1" && exec "$2" -c "$3" "$4" "$1"'
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", mount, "sh"]
    done = subprocess.run([*command, new, sys.executable, script, old], capture_output=True, check=True, timeout=120)
    assert done.stdout.decode().splitlines()[-1].startswith("there is no space left for the files")


def test_missing(tmp_path: Path, new: Path) -> None:
    with pytest.raises(Failure):
        copy_tree(tmp_path / "absent", new)
