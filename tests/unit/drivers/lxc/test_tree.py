# SPDX-License-Identifier: AGPL-3.0-or-later
import ctypes
import os
import stat
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orrery.drivers.lxc.tree import LIST_LIMIT, Tree
from orrery.errors import Failure, NotFound, OrreryError

AT_FDCWD, RENAME_EXCHANGE = -100, 2
OWNER = (os.geteuid(), os.getegid())


@pytest.fixture
def outside(tmp_path):
    folder = tmp_path / "host"
    folder.mkdir()
    (folder / "secret").write_text("of the host")
    return folder


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "tree"
    (folder / "etc").mkdir(parents=True)
    (folder / "etc" / "hosts").write_text("127.0.0.1 localhost\n")
    return folder


@pytest.fixture
def tree(root):
    with Tree(root) as opened:
        yield opened


def write(tree, path, data, **more):
    return tree.write(path, data, owner=OWNER, **more)


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path): (path.lstat().st_mode, path.read_bytes() if path.is_file() and not path.is_symlink() else b"")
        for path in sorted(folder.rglob("*"))
    }


def test_these_tests_cannot_write_to_the_host():
    for place in (Path("/"), Path("/etc"), Path(__file__).parent, Path("/var/lib")):
        with pytest.raises(OSError, match="Read-only file system"):
            (place / "orrery-escaped").touch()


# --- ordinary use


def test_reads_what_is_there_by_either_spelling(tree):
    assert tree.read("/etc/hosts") == tree.read("etc/hosts") == b"127.0.0.1 localhost\n"


def test_works_on_a_descriptor_of_its_own(root):
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    tree = Tree(descriptor)
    os.close(descriptor)
    assert tree.exists("/etc")
    tree.close()
    tree.close()


def test_a_tree_must_be_a_folder(root):
    with pytest.raises(Failure, match="unable to open the container's file tree"):
        Tree(root / "etc" / "hosts")


def test_a_new_file_has_the_usual_mode_whatever_the_mask(tree, root):
    before = os.umask(0o077)
    try:
        assert write(tree, "/etc/hostname", b"web\n")
        assert tree.mkdir("/srv/a", owner=OWNER)
    finally:
        os.umask(before)
    assert stat.S_IMODE((root / "etc/hostname").stat().st_mode) == 0o644
    assert stat.S_IMODE((root / "srv").stat().st_mode) == stat.S_IMODE((root / "srv/a").stat().st_mode) == 0o755


def test_writing_keeps_the_mode_but_no_set_id_bits(tree, root):
    (root / "etc/hosts").chmod(0o4640)
    tree.write("/etc/hosts", b"new")
    assert stat.S_IMODE((root / "etc/hosts").stat().st_mode) == 0o640


@pytest.mark.root
def test_writing_keeps_the_owner_or_takes_the_one_given(tree, root):
    os.chown(root / "etc/hosts", 1234, 42)
    tree.write("/etc/hosts", b"new")
    assert ((root / "etc/hosts").stat().st_uid, (root / "etc/hosts").stat().st_gid) == (1234, 42)
    tree.write("/etc/hosts", b"new", owner=(7, 8), mode=0o600)
    state = tree.stat("/etc/hosts")
    assert (state.st_uid, state.st_gid, stat.S_IMODE(state.st_mode)) == (7, 8, 0o600)
    tree.chown("/etc/hosts", 0, 0)
    tree.chmod("/etc/hosts", 0o644)
    assert (tree.stat("/etc/hosts").st_uid, stat.S_IMODE(tree.stat("/etc/hosts").st_mode)) == (0, 0o644)


def test_writing_the_same_touches_nothing(tree, root):
    before = (root / "etc/hosts").stat()
    assert not write(tree, "/etc/hosts", b"127.0.0.1 localhost\n")
    assert (root / "etc/hosts").stat().st_ino == before.st_ino
    assert write(tree, "/etc/hosts", b"127.0.0.1 localhosT\n")
    assert [path.name for path in (root / "etc").iterdir()] == ["hosts"]


def test_lists_makes_links_and_removes(tree, root):
    assert tree.symlink("/etc/mtab", "/proc/mounts")
    assert not tree.symlink("/etc/mtab", "/proc/mounts")
    assert tree.symlink("/etc/mtab", "../proc/self/mounts")
    assert tree.readlink("/etc/mtab") == "../proc/self/mounts"
    assert tree.readlink("/etc/hosts") is None
    assert tree.readlink("/nowhere/at/all") is None
    assert tree.list("/etc") == ["hosts", "mtab"]
    assert tree.remove("/etc/mtab")
    assert not tree.remove("/etc/mtab")
    assert not tree.remove("/none/of/it")
    with pytest.raises(Failure, match="'/etc' in the container is a folder"):
        tree.remove("/etc")
    with pytest.raises(Failure, match="is a folder, where a link belongs"):
        tree.symlink("/etc", "/proc")
    assert tree.remove("/etc", recursive=True)
    assert not (root / "etc").exists()


def test_making_a_folder_twice_is_fine(tree, root):
    assert tree.mkdir("/root/.ssh", mode=0o700, owner=OWNER)
    assert not tree.mkdir("/root/.ssh", mode=0o755, owner=OWNER)
    assert stat.S_IMODE((root / "root/.ssh").stat().st_mode) == 0o700


def test_what_is_missing_is_told_by_its_path(tree):
    assert not tree.exists("/etc/none")
    with pytest.raises(NotFound, match="'/etc/none' in the container: No such file"):
        tree.read("/etc/none")
    with pytest.raises(NotFound, match="'/none/file' in the container"):
        write(tree, "/none/file", b"")


@pytest.mark.parametrize("path", ["", "/", "//", "///", ".", "..", "/etc/..", "a\0b", "/etc/\ud800"])
def test_no_file_can_be_at_such_a_path(tree, path):
    with pytest.raises(Failure):
        write(tree, path, b"x")
    assert tree.readlink("/etc") is None


@pytest.mark.parametrize("path", ["", "/", "//", "///", "//.", "./", ".", "..", "/..", "//..", "/etc/.."])
def test_the_top_itself_is_never_removed(tree, root, path, monkeypatch):
    def never(*_args: object, **_more: object) -> None:
        pytest.fail("something would have been removed")

    monkeypatch.setattr("orrery.drivers.lxc.tree.shutil.rmtree", never)
    with pytest.raises(Failure):
        tree.remove(path, recursive=True)
    assert (root / "etc/hosts").exists()


# --- what is no file


def test_a_pipe_blocks_nobody_and_is_refused(tree, root):
    os.mkfifo(root / "etc/pipe")
    with pytest.raises(Failure, match="is a pipe, where a file belongs"):
        tree.read("/etc/pipe")
    with pytest.raises(Failure, match="is a pipe, where a file belongs"):
        write(tree, "/etc/pipe", b"x")


@pytest.mark.root
def test_a_device_is_never_opened(tree, root):
    os.mknod(root / "etc/zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    os.mknod(root / "etc/none", stat.S_IFBLK | 0o666, os.makedev(259, 255))
    for name in ("zero", "none"):
        with pytest.raises(Failure, match="is a device, where a file belongs"):
            tree.read(f"/etc/{name}")
        with pytest.raises(Failure, match="is a device, where a file belongs"):
            write(tree, f"/etc/{name}", b"x")


def test_a_folder_in_a_files_place_is_refused(tree, root):
    (root / "etc/shadow").mkdir()
    with pytest.raises(Failure, match="'/etc/shadow' in the container is a folder, where a file belongs"):
        tree.read("/etc/shadow")
    with pytest.raises(Failure, match="is a folder"):
        write(tree, "/etc/shadow", b"x")


def test_a_huge_file_is_refused_at_once(tree, root):
    with (root / "etc/hosts").open("wb") as handle:
        handle.truncate(1 << 40)
    with pytest.raises(Failure, match="is larger than 1048576 bytes"):
        tree.read("/etc/hosts")
    assert write(tree, "/etc/hosts", b"small")


def test_a_folder_with_very_many_names_is_cut(tree, root):
    (root / "many").mkdir()
    for number in range(LIST_LIMIT + 5):
        (root / "many" / str(number)).touch()
    assert len(tree.list("/many")) == LIST_LIMIT


# --- links


def test_an_absolute_link_is_absolute_inside(tree, root, outside):
    (root / "etc/out").symlink_to(outside)
    (root / "etc/file").symlink_to(outside / "secret")
    assert not tree.exists("/etc/out")
    assert not tree.exists("/etc/out/secret")
    with pytest.raises(NotFound):
        tree.read("/etc/file")
    with pytest.raises(NotFound):
        write(tree, "/etc/file", b"taken")
    assert (outside / "secret").read_text() == "of the host"


def test_dots_end_at_the_top(tree, root, outside):
    (root / "etc/up").symlink_to("../../../../../../../../.." + str(outside))
    assert not tree.exists("/etc/up/secret")
    assert tree.read("/../../../etc/hosts") == tree.read("/etc/hosts")
    assert not tree.exists("../host/secret")
    with pytest.raises(OrreryError):
        write(tree, "../host/new", b"x")
    assert [path.name for path in outside.iterdir()] == ["secret"]


def test_a_link_is_followed_inside_or_replaced(tree, root):
    (root / "run").mkdir()
    (root / "etc/resolv.conf").symlink_to("/run/resolv.conf")
    (root / "etc/again").symlink_to("resolv.conf")
    write(tree, "/etc/again", b"first")
    assert (root / "run/resolv.conf").read_bytes() == b"first"
    write(tree, "/etc/again", b"second", follow=False)
    assert not (root / "etc/again").is_symlink()
    assert (root / "run/resolv.conf").read_bytes() == b"first"


def test_loops_end(tree, root):
    (root / "etc/a").symlink_to("b")
    (root / "etc/b").symlink_to("a")
    for act in (lambda: tree.read("/etc/a"), lambda: write(tree, "/etc/a", b"x"), lambda: tree.list("/etc/a")):
        with pytest.raises(Failure, match="Too many levels of symbolic links"):
            act()
    assert not tree.exists("/etc/a")


@pytest.mark.parametrize("link", ["/proc/self/root", "/proc/self/cwd", "/proc/self/fd/0"])
def test_magic_links_are_not_taken(link):
    with Tree(Path("/")) as tree:
        assert not tree.exists(f"{link}/etc") or link.endswith("0")
        with pytest.raises(OrreryError):
            tree.list(link)


def test_removing_never_follows(tree, root, outside):
    (root / "etc/out").symlink_to(outside)
    (root / "srv").mkdir()
    (root / "srv/deep").symlink_to(outside)
    assert tree.remove("/etc/out")
    assert tree.remove("/srv", recursive=True)
    assert (outside / "secret").exists()


def test_what_is_swapped_meanwhile_leads_nowhere_else(tree, root, outside):
    """Somebody inside flips a folder between itself and a link to the host's, as fast as possible."""
    (root / "etc2").mkdir()
    (root / "link").symlink_to(outside)
    before = snapshot(outside)
    over = threading.Event()

    def flip() -> None:
        libc = ctypes.CDLL(None)
        one, other = os.fsencode(root / "etc2"), os.fsencode(root / "link")
        while not over.is_set():
            libc.renameat2(AT_FDCWD, one, AT_FDCWD, other, RENAME_EXCHANGE)

    flipper = threading.Thread(target=flip)
    flipper.start()
    done = 0
    try:
        for number in range(600):
            for act in (
                lambda n=number: write(tree, "/etc2/secret", b"%d" % n),
                lambda: tree.read("/etc2/secret"),
                lambda: tree.remove("/etc2/secret"),
                lambda: tree.mkdir("/etc2/new", owner=OWNER),
                lambda: tree.symlink("/etc2/secret2", "x"),
            ):
                try:
                    assert act() != b"of the host"
                    done += 1
                except OrreryError:
                    continue
    finally:
        over.set()
        flipper.join()
    assert done
    assert snapshot(outside) == before


NAMES = st.sampled_from(["a", "b", "etc", "..", ".", "link", "host", "x" * 300, "\n", "\udcff", "ü"])
PATHS = st.builds(
    lambda lead, parts: lead + "/".join(parts), st.sampled_from(["", "/", "//"]), st.lists(NAMES, max_size=6)
)


@settings(max_examples=150, deadline=None, database=None)
@given(links=st.lists(st.tuples(NAMES, PATHS), max_size=4), path=PATHS, text=st.text(max_size=8))
def test_no_path_and_no_links_leave_the_tree(tmp_path_factory, links, path, text):
    top = tmp_path_factory.mktemp("p")
    outside, root = top / "host", top / "root"
    (root / "etc").mkdir(parents=True)
    outside.mkdir()
    (outside / "secret").write_text("of the host")
    for name, target in links:
        try:
            (root / name).symlink_to(target.replace("host", str(outside)) or "x")
        except OSError:
            continue
    before, names = snapshot(outside), sorted(top.iterdir())
    with Tree(root) as tree:
        for each in (path, text, f"{path}/{text}", f"{path}/secret"):
            for act in (
                lambda p=each: write(tree, p, b"data"),
                lambda p=each: tree.read(p),
                lambda p=each: tree.mkdir(p, owner=OWNER),
                lambda p=each: tree.symlink(p, str(outside)),
                lambda p=each: tree.list(p),
                lambda p=each: tree.remove(p, recursive=True),
            ):
                try:
                    assert act() != b"of the host"
                except OrreryError:
                    continue
            tree.exists(each)
    assert snapshot(outside) == before
    assert sorted(top.iterdir()) == names
