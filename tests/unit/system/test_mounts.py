# SPDX-License-Identifier: AGPL-3.0-or-later
"""Mounts that one program or block sees, and their description."""

import os
import signal
import stat
import threading
from pathlib import Path

import pytest

from orrery.errors import Failure
from orrery.system import livemounts, mounts, process
from orrery.system.mounts import ContainerMount, DeviceNode, DeviceNodes, Folder, LoopImage, Memory, Mount, Spot


def image(path: Path) -> Path:
    with path.open("wb") as handle:
        handle.truncate(8 << 20)
    process.run(["mke2fs", "-q", "-t", "ext4", "-F", str(path)], timeout=30)
    return path


def test_description() -> None:
    mount = Mount(LoopImage(Path("/a")), Path("/b"), read_only=True, options=("nodev", "noatime", "discard", "acl"))
    assert mount.describe() == {
        "kind": "image",
        "source": "/a",
        "target": "/b",
        "fstype": "",
        "flags": 4 | 1024,
        "options": "discard,acl",
        "read_only": True,
    }


def test_device_nodes() -> None:
    node = DeviceNode.like(Path("/dev/null"), "null", mode=0o640, uid=7)
    assert (node.rule, stat.S_ISCHR(node.mode), stat.S_IMODE(node.mode), node.uid) == ("c 1:3", True, 0o640, 7)
    with pytest.raises(Failure, match="Device /no/such does not exist"):
        DeviceNode.like(Path("/no/such"), "x")
    with pytest.raises(Failure, match="Device / is not a device"):
        DeviceNode.like(Path("/"), "x")


def seen(folder: Path) -> str:
    return next((line for line in Path("/proc/self/mounts").read_text().splitlines() if str(folder) in line), "")


def see(view: list[mounts.Shown], script: str, output: Path) -> str:
    """What a program with this view says."""
    with output.open("wb") as handle:
        child = process.spawn(["sh", "-c", script], view=view, stdout=handle.fileno(), stderr=handle.fileno())
        assert process.wait(child, 30)
        process.reap(child)
    return output.read_text()


@pytest.mark.root
@pytest.mark.parametrize("threads", [False, True], ids=["forked", "fresh interpreter"])
def test_a_program_has_mounts_that_nobody_else_sees(tmp_path: Path, threads: bool) -> None:
    disk, place = image(tmp_path / "disk.raw"), tmp_path / "place"
    (tmp_path / "shown").mkdir()
    view: list[mounts.Shown] = [
        Memory(place),
        Mount(LoopImage(disk), place / "disk", options=("noatime", "nodev")),
        Mount(Folder(tmp_path / "shown"), place / "folder", read_only=True),
        DeviceNodes(place / "dev", (DeviceNode.like(Path("/dev/null"), "sub/zero", mode=0o604, uid=5, gid=6),)),
    ]
    script = f"cd {place}; cat /proc/self/mounts; echo x > disk/x; echo x > folder/x; stat -c %u-%g-%a-%t dev/sub/zero"
    stop = threading.Event()
    other = threading.Thread(target=stop.wait)
    if threads:
        other.start()
    try:
        said = see(view, script, tmp_path / "output")
    finally:
        stop.set()
        if threads:
            other.join()
    assert f"{place}/disk ext4 rw,nodev,noatime" in said
    assert "Read-only file system" in said
    assert said.splitlines()[-1] == "5-6-604-1"
    assert seen(place) == ""
    assert livemounts.wait_unused(disk)
    assert not (tmp_path / "shown" / "x").exists()


@pytest.mark.root
def test_a_place_to_mount_at_is_made_in_a_tree_and_never_beside_it(tmp_path: Path) -> None:
    tree, beside = tmp_path / "tree", tmp_path / "beside"
    tree.mkdir()
    beside.mkdir()
    (tree / "away").symlink_to(beside)
    (tree / "here").symlink_to("srv")
    view: list[mounts.Shown] = [Spot(tree, "/srv/data"), Spot(tree, "/srv/file", folder=False)]
    see(view, "true", tmp_path / "output")
    assert (tree / "srv/data").is_dir()
    assert (tree / "srv/file").is_file()
    for place in ("/away/data", "/away", "/here/more"):
        with pytest.raises(Failure, match=r"make the mount point '.*' in the container: Too many levels of symbolic"):
            see([Spot(tree, place)], "true", tmp_path / "output")
    assert list(beside.iterdir()) == []
    assert not (tree / "srv/more").exists()


@pytest.mark.root
def test_mounts_of_a_running_process_are_changed_without_following_its_links(tmp_path: Path) -> None:
    here, there, shown, place = (tmp_path / name for name in ("here", "there", "shown", "place"))
    for folder in (here, there, shown, place):
        folder.mkdir()
    (shown / "x").touch()
    child = process.spawn(["sleep", "100"], view=[Memory(there / "masked")])
    try:
        mount = Mount(Folder(shown, recursive=False), place)
        livemounts.attach(child.pid, mount, str(here / "new/data"))
        assert livemounts.is_mounted(child.pid, str(here / "new/data"))
        assert livemounts.detach(child.pid, str(here / "new/data"))
        assert not livemounts.is_mounted(child.pid, str(here / "new/data"))
        assert not livemounts.detach(child.pid, str(here / "new/data"))
        (here / "link").symlink_to(there)
        with pytest.raises(Failure, match="Too many levels of symbolic links"):
            livemounts.attach(child.pid, mount, str(here / "link/data"))
        with pytest.raises(Failure, match="Too many levels of symbolic links"):
            livemounts.detach(child.pid, str(here / "link/masked"))
        assert livemounts.is_mounted(child.pid, str(there / "masked"))
        assert not (there / "data").exists()
    finally:
        process.signal(child, signal.SIGKILL)
        process.wait(child, 10)
        process.reap(child)


@pytest.mark.root
def test_a_view_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    empty = tmp_path / "empty.raw"
    empty.write_bytes(bytes(1 << 20))
    for source, reason in (
        (LoopImage(empty), f"find an ext4, XFS or btrfs file system in '{empty}'"),
        (LoopImage(tmp_path / "no-such"), "No such file"),
        (LoopImage(empty, "ext4"), f"mount '{empty}': Invalid argument"),
        (Folder(tmp_path / "no-such"), f"bind '{tmp_path}/no-such': No such file"),
    ):
        with pytest.raises(Failure, match="unable to start true: ") as told:
            process.spawn(["true"], view=[Mount(source, tmp_path / "place")])
        assert reason in told.value.message
    assert livemounts.wait_unused(empty)


@pytest.mark.root
def test_a_tree_is_put_together_for_a_while(tmp_path: Path) -> None:
    root, outside, below = tmp_path / "root", tmp_path / "outside", tmp_path / "below"
    for folder in (root, outside, below, root / "srv"):
        folder.mkdir()
    (root / "srv/data").symlink_to(outside)  # a trap: it must not lead out of the tree
    (root / str(outside).lstrip("/")).mkdir(parents=True)
    mounted = {
        "rootfs": ContainerMount("rootfs", Folder(root)),
        "mp0": ContainerMount("mp0", LoopImage(image(tmp_path / "data.raw")), "/srv/data/x"),
        "mp1": ContainerMount("mp1", LoopImage(image(tmp_path / "more.raw")), "/new/place"),
    }
    here = Path.cwd()
    with mounts.aside():
        assert mounts.assemble(mounted, below) == below
        assert "ext4" in seen(below / "new/place")
        (below / "new/place/file").write_text("x")
        assert process.run(["ls", str(below / "new/place")], timeout=10).text.split() == ["file", "lost+found"]
        assert list(outside.iterdir()) == []
    assert Path.cwd() == here
    assert seen(below) == ""
    assert livemounts.wait_unused(tmp_path / "data.raw")
    assert (root / "new/place").is_dir()
    assert list(outside.iterdir()) == []
    gone = {**mounted, "mp0": ContainerMount("mp0", LoopImage(tmp_path / "gone.raw"), "/x")}
    with mounts.aside(), pytest.raises(Failure, match=r"unable to mount 'mp0': .*No such file"):
        mounts.assemble(gone, below)


@pytest.mark.root
def test_work_apart_changes_nothing_here(tmp_path: Path) -> None:
    here = Path.cwd()
    assert livemounts.apart(lambda: os.chdir(tmp_path)) is None
    assert Path.cwd() == here
    with pytest.raises(ZeroDivisionError):
        livemounts.apart(lambda: 1 / 0)
    with pytest.raises(Failure, match="unable to enter the network of process"):
        livemounts.in_network(1 << 30, lambda: None)
