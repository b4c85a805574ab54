# SPDX-License-Identifier: AGPL-3.0-or-later
"""Templates unpacked by the real programs, friendly and hostile ones."""

import bz2
import gzip
import lzma
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.unit.drivers.storage.archives import BLOCKDEV, CHAR, FIFO, FOLDER, LINK, SYMLINK, Entry, archive, entry

from orrery.drivers.storage import filesystem, unpack_tree
from orrery.drivers.storage.unpack_tree import unpack
from orrery.errors import Cancelled, Failure, NotFound

pytestmark = pytest.mark.root

MIB = 1 << 20
CAPABILITY = "security.capability"
NET_BIND = bytes.fromhex("0100000200040000000000000000000000000000")
"""`cap_net_bind_service=ep` as include/uapi/linux/capability.h lays it out, version 2."""


def zstd(data: bytes) -> bytes:
    return subprocess.run(["zstd", "-q", "-c"], input=data, capture_output=True, check=True).stdout


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "tar": bytes,
    "gz": gzip.compress,
    "xz": lzma.compress,
    "zst": zstd,
    "bz2": bz2.compress,
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    made = tmp_path / "tree"
    made.mkdir()
    return made


@pytest.fixture
def pack(tmp_path: Path) -> Callable[..., Path]:
    def write(*entries: Entry, kind: str = "tar") -> Path:
        path = tmp_path / "template"
        path.write_bytes(PACKERS[kind](archive(entries)))
        return path

    return write


@pytest.mark.parametrize("kind", PACKERS)
def test_everything_is_kept(tree: Path, pack: Callable[..., Path], kind: str) -> None:
    path = pack(
        entry("./", FOLDER, mode=0o751),
        entry("./usr", FOLDER),
        entry("./bin", SYMLINK, linkname="usr"),
        entry("./usr/su", data=b"su", mode=0o6755, uid=0, gid=42),
        entry("./usr/ping", data=b"ping", pax_headers={f"SCHILY.xattr.{CAPABILITY}": NET_BIND.decode("latin-1")}),
        entry("./usr/copy", LINK, linkname="./usr/su"),
        entry("./nobody", data=b"x" * 5000, uid=65534, gid=65535, mode=0o600, mtime=1_000_000_000),
        entry("./sticky", FOLDER, mode=0o1777),
        entry("./closed", FOLDER, mode=0),
        entry("./closed/inside", data=b"in", uid=1000),
        entry("./pipe", FIFO),
        entry("./line\nbreak \udcff -rf", data=b"odd"),
        entry("./null", CHAR, devmajor=1, devminor=3),
        kind=kind,
    )
    seen: list[tuple[int, int]] = []
    notes: list[str] = []
    made = unpack(path, tree, 10 * MIB, lambda done, total: seen.append((done, total)), notes.append)
    assert (made.entries, made.skipped) == (13, 1)
    assert notes == ["left out './null': it is a device, which containers get otherwise"]
    assert seen[-1] == (path.stat().st_size, path.stat().st_size)
    assert seen == sorted(seen)
    assert tree.stat().st_mode & 0o7777 == 0o751
    su = (tree / "usr/su").stat()
    assert (su.st_mode & 0o7777, su.st_uid, su.st_gid, su.st_nlink) == (0o6755, 0, 42, 2)
    assert (tree / "bin").readlink() == Path("usr")
    nobody = (tree / "nobody").stat()
    assert (nobody.st_uid, nobody.st_gid, nobody.st_mtime) == (65534, 65535, 1_000_000_000)
    assert (tree / "sticky").stat().st_mode & 0o7777 == 0o1777
    assert (tree / "closed").stat().st_mode & 0o7777 == 0
    assert (tree / "closed/inside").stat().st_uid == 1000
    assert (tree / "pipe").is_fifo()
    assert (tree / "line\nbreak \udcff -rf").read_bytes() == b"odd"
    assert not (tree / "null").exists()


def test_file_capabilities_are_kept(tree: Path, tmp_path: Path) -> None:
    """Python writes no binary values into archives, so GNU tar makes this one."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "ping").write_bytes(b"x")
    os.setxattr(source / "ping", CAPABILITY, NET_BIND)
    os.setxattr(source / "ping", "user.note", b"n")
    os.setxattr(source / "ping", "trusted.secret", b"n")
    command = ["tar", "--create", "--xattrs", "--xattrs-include=*", "--file", tmp_path / "t", "-C", source, "."]
    subprocess.run([*map(str, command)], check=True)
    unpack(tmp_path / "t", tree)
    assert os.getxattr(tree / "ping", CAPABILITY) == NET_BIND
    assert set(os.listxattr(tree / "ping")) == {CAPABILITY, "user.note"}


def test_sparse_files_stay_sparse(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(b"begin")
    os.truncate(tmp_path / "big", 1 << 30)
    for form in ("gnu", "pax"):
        command = ["tar", "--create", "--sparse", f"--format={form}", "--file", tmp_path / "t", "-C", tmp_path, "big"]
        subprocess.run([*map(str, command)], check=True)
        unpack(tmp_path / "t", tree, MIB)
        state = (tree / "big").stat()
        assert (state.st_size, state.st_blocks * 512 < MIB) == (1 << 30, True)
        (tree / "big").unlink()


SECRET = entry("secret", data=b"secret")


@pytest.mark.parametrize(
    "entries",
    [
        [entry("../out", data=b"x")],
        [entry("a", FOLDER), entry("a/../../out", data=b"x")],
        [entry("link", SYMLINK, linkname="{outside}"), entry("link/out", data=b"x")],
        [entry("link", SYMLINK, linkname=".."), entry("link/out", data=b"x")],
        [entry("link", SYMLINK, linkname="../outside"), entry("link/out", data=b"x")],
        [entry("a", SYMLINK, linkname="/"), entry("b", LINK, linkname="a"), entry("b/out", data=b"x")],
        [entry("copy", LINK, linkname="../outside/victim"), entry("copy", data=b"overwritten")],
        [entry("copy", LINK, linkname="{outside}/victim")],
        [entry("x", SYMLINK, linkname="{outside}/victim"), entry("y", LINK, linkname="x/../victim")],
        [entry("d", FOLDER), entry("d", SYMLINK, linkname="{outside}"), entry("d/out", data=b"x")],
    ],
    ids=[
        *("dots", "dots within", "absolute link", "link up", "relative link", "hard link to link", "hard link out"),
        *("absolute hard link", "links in a row", "folder becomes link"),
    ],
)
def test_nothing_leaves_the_tree(tmp_path: Path, tree: Path, pack: Callable[..., Path], entries: list[Entry]) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "victim").write_bytes(b"untouched")
    for info, _ in entries:
        info.linkname = info.linkname.replace("{outside}", str(outside))
    with pytest.raises(Failure, match="the archive cannot be unpacked: "):
        unpack(pack(entry("first", data=b"x"), *entries), tree)
    assert list(tree.iterdir()) == []
    assert [(path.name, path.read_bytes()) for path in outside.iterdir()] == [("victim", b"untouched")]
    assert (outside / "victim").stat().st_nlink == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["outside", "template", "tree"]


def test_absolute_names_stay_within(tree: Path, pack: Callable[..., Path]) -> None:
    name = "/orrery-unpacked-outside"
    unpack(pack(entry(name, data=b"x"), entry("/link", SYMLINK, linkname="/etc/passwd")), tree)
    assert (tree / name[1:]).read_bytes() == b"x"
    assert (tree / "link").is_symlink()
    assert not Path(name).exists()


def test_links_that_point_out_are_only_kept(tree: Path, pack: Callable[..., Path]) -> None:
    unpack(pack(entry("etc", FOLDER), entry("etc/mtab", SYMLINK, linkname="../../../../proc/mounts")), tree)
    assert (tree / "etc/mtab").readlink() == Path("../../../../proc/mounts")


def test_no_device_is_made_behind_our_back(tree: Path, pack: Callable[..., Path]) -> None:
    notes: list[str] = []
    made = unpack(pack(*(entry(f"sd{n}", BLOCKDEV, devmajor=8) for n in range(30)), SECRET), tree, log=notes.append)
    assert made.skipped == 30
    assert notes[-1] == "left out 10 more"
    assert [path.name for path in tree.iterdir()] == ["secret"]


@pytest.mark.parametrize("kind", ["gz", "xz", "zst", "bz2"])
def test_bomb(tmp_path: Path, tree: Path, kind: str) -> None:
    program = {"gz": "gzip", "xz": "xz", "zst": "zstd", "bz2": "bzip2"}[kind]
    path = tmp_path / "bomb"
    head = archive([entry("zeros", data=b"")])[:512]
    grown = bytearray(head)
    grown[124:136] = b"77777777777\0"
    grown[148:156] = b" " * 8
    grown[148:156] = b"%06o\0 " % sum(grown)
    with path.open("wb") as out:
        packer = subprocess.Popen([program, "-c"], stdin=subprocess.PIPE, stdout=out)
        assert packer.stdin is not None
        packer.stdin.write(bytes(grown))
        for _ in range(64):
            packer.stdin.write(bytes(MIB))
        packer.stdin.close()
        assert packer.wait() == 0
    assert path.stat().st_size < MIB
    with pytest.raises(Failure, match=f"holds more than {16 * MIB} bytes"):
        unpack(path, tree, 16 * MIB)
    assert list(tree.iterdir()) == []


@pytest.mark.parametrize("kind", PACKERS)
def test_cut_off(tmp_path: Path, tree: Path, pack: Callable[..., Path], kind: str) -> None:
    path = pack(*(entry(str(number), data=os.urandom(3000)) for number in range(300)), kind=kind)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(Failure):
        unpack(path, tree)
    assert list(tree.iterdir()) == []


@pytest.mark.parametrize("kind", ["gz", "xz", "zst"])
def test_damaged_in_the_middle(tree: Path, pack: Callable[..., Path], kind: str) -> None:
    path = pack(*(entry(str(number), data=os.urandom(3000)) for number in range(300)), kind=kind)
    with path.open("r+b") as stream:
        stream.seek(path.stat().st_size // 2)
        stream.write(b"damage" * 4)
    with pytest.raises(Failure):
        unpack(path, tree)
    assert list(tree.iterdir()) == []


def test_what_is_no_archive(tmp_path: Path, tree: Path) -> None:
    path = tmp_path / "template.tar.gz"
    for data, words in (
        (b"QFI\xfb" + bytes(600), "qcow2"),
        (b"<html>not found</html>", "web page"),
        (b"PK\x03\x04" + bytes(600), "zip"),
        (b"any text " * 200, "no tar archive"),
        (b"", "cut off"),
        (gzip.compress(b"any text " * 200), "no tar archive"),
        (gzip.compress(gzip.compress(archive([SECRET]))), "no tar archive|cut off"),
    ):
        path.write_bytes(data)
        with pytest.raises(Failure, match=words):
            unpack(path, tree)
    with pytest.raises(NotFound):
        unpack(tmp_path / "absent", tree)
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(Failure):
        unpack(tmp_path / "link", tree)


def test_only_empty_trees(tmp_path: Path, tree: Path, pack: Callable[..., Path]) -> None:
    (tree / "mine").write_bytes(b"x")
    with pytest.raises(Failure, match="not empty"):
        unpack(pack(SECRET), tree)
    assert (tree / "mine").read_bytes() == b"x"
    with pytest.raises(NotFound):
        unpack(pack(SECRET), tmp_path / "absent")


def test_cancelled(tree: Path, pack: Callable[..., Path]) -> None:
    def cancel(done: int, total: int) -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        unpack(pack(*(entry(str(n), data=bytes(100_000)) for n in range(50)), kind="gz"), tree, progress=cancel)
    assert list(tree.iterdir()) == []


def test_many_complaints_do_not_stop_it(tree: Path, pack: Callable[..., Path]) -> None:
    """A program that waits for somebody to hear it out must not wait forever."""
    entries = [entry(f"../{'n' * 90}{number}", data=b"x") for number in range(20_000)]
    with pytest.raises(Failure, match=r"^the archive cannot be unpacked: \.\./n.*contains '\.\.'"):
        unpack(pack(*entries), tree)


def test_many_small_files(tree: Path, pack: Callable[..., Path]) -> None:
    made = unpack(pack(*(entry(f"{number}", data=b"x") for number in range(20_000)), kind="zst"), tree)
    assert made.entries == 20_000
    assert sum(1 for _ in tree.iterdir()) == 20_000


def test_no_faster_than_asked(tree: Path, pack: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock of its own; whoever wants to stop it is heard while it rests."""
    path = pack(entry("x", data=bytes(3 * MIB)))
    now = [0.0]

    def rest(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr(unpack_tree, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=rest))
    calls: list[int] = []
    unpack(path, tree, progress=lambda done, total: calls.append(done), rate=MIB)
    assert now[0] == pytest.approx(path.stat().st_size / MIB)
    assert len(calls) >= 6


def shows(pid: str, place: Path) -> bool:
    """Whether a process has something mounted from there."""
    try:
        return str(place).encode() in Path("/proc", pid, "mountinfo").read_bytes()
    except OSError:
        return False


def test_sudden_death_takes_the_programs_along(tree: Path, pack: Callable[..., Path]) -> None:
    path = pack(*(entry(str(number), data=bytes(10_000)) for number in range(20_000)), kind="gz")
    script = "import sys; from pathlib import Path; from orrery.drivers.storage.unpack_tree import unpack\n"
    script += "unpack(Path(sys.argv[1]), Path(sys.argv[2]))"
    victim = subprocess.Popen([sys.executable, "-c", script, path, tree])
    wait_until(lambda: any(tree.iterdir()))
    assert victim.poll() is None
    helpers = [pid for pid in os.listdir("/proc") if pid.isdigit() and shows(pid, tree)]  # noqa: PTH208
    assert helpers, "nobody has the tree before it"
    victim.kill()
    victim.wait()
    wait_until(lambda: not any(shows(pid, tree) for pid in helpers))


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


INSIDE = """
import sys
from pathlib import Path
from orrery.drivers.storage.unpack_tree import unpack
from orrery.errors import OrreryError
try:
    print(unpack(Path(sys.argv[1]), Path(sys.argv[2])).entries)
except OrreryError as error:
    print(error.code, error.message)
print(sorted(path.name for path in Path(sys.argv[2]).iterdir()))
"""


def inside(mount: str, path: Path, tree: Path) -> list[str]:
    """What `unpack` says in a mount namespace in which `mount` put something at the tree ($1)."""
    script = f'{mount} && exec "$2" -c "$3" "$4" "$1"'
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh"]
    arguments = [str(tree), sys.executable, textwrap.dedent(INSIDE), str(path)]
    done = subprocess.run([*command, *arguments], capture_output=True, check=True, timeout=120)
    return done.stdout.decode().splitlines()[-2:]


def test_full_file_system(tree: Path, pack: Callable[..., Path]) -> None:
    path = pack(*(entry(str(number), data=bytes(MIB)) for number in range(8)), kind="gz")
    said, left = inside('mount -t tmpfs -o size=4m small "$1"', path, tree)
    assert "there is no room for more" in said
    assert left == "[]"
    path = pack(*(entry(str(number)) for number in range(3000)), kind="gz")
    said, left = inside('mount -t tmpfs -o size=4m,nr_inodes=500 small "$1"', path, tree)
    assert said.startswith("no-space there is no space left"), said
    assert left == "[]"


def test_image(tmp_path: Path, tree: Path, pack: Callable[..., Path]) -> None:
    """The tree is the top of a file system in an image, which is mounted for the while."""
    image = tmp_path / "image.raw"
    image.touch(mode=0o600)
    os.truncate(image, 32 * MIB)
    filesystem.make(image)
    path = pack(entry("etc", FOLDER), entry("etc/big", data=bytes(3 * MIB), uid=1000), kind="xz")
    assert inside(f'mount -o loop "{image}" "$1"', path, tree) == ["2", "['etc', 'lost+found']"]
    assert list(tree.iterdir()) == []
    filesystem.check(image)
    found = subprocess.run(["debugfs", "-R", "stat /etc/big", image], capture_output=True, check=True).stdout.decode()
    assert "User:  1000" in found
    assert f"Size: {3 * MIB}" in found
