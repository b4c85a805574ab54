# SPDX-License-Identifier: AGPL-3.0-or-later
"""Crash-safe files, paths that stay inside, locks."""

import errno
import os
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orrery.errors import Corrupt, Failure, Locked, NoSpace, NotFound, ParameterError
from orrery.system import files


def test_write_atomic_replaces_and_leaves_nothing_beside(tmp_path: Path) -> None:
    target = tmp_path / "state"
    files.write_atomic(target, b"one")
    files.write_atomic(target, b"two", mode=0o640)
    assert target.read_bytes() == b"two"
    assert target.stat().st_mode & 0o777 == 0o640
    assert [p.name for p in tmp_path.iterdir()] == ["state"]


def test_write_atomic_keeps_the_old_content_when_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "state"
    files.write_atomic(target, b"old")

    def full(_descriptor: int, _data: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(NoSpace, match="free some space"):
        files.write_atomic(target, b"new")
    assert target.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["state"]


def test_write_atomic_does_not_follow_a_link(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("kept")
    (tmp_path / "state").symlink_to(tmp_path / "victim")
    files.write_atomic(tmp_path / "state", b"new")
    assert (tmp_path / "victim").read_text() == "kept"
    assert not (tmp_path / "state").is_symlink()


def test_json_round_trip_and_damage(tmp_path: Path) -> None:
    target = tmp_path / "x.json"
    with pytest.raises(FileNotFoundError):
        files.read_json(target)
    files.write_json(target, {"a": [1, None, "ü"]})
    assert files.read_json(target) == {"a": [1, None, "ü"]}
    target.write_bytes(target.read_bytes()[:5])
    with pytest.raises(Corrupt, match="restore it from a backup"):
        files.read_json(target)


def test_partial_appears_only_when_whole(tmp_path: Path) -> None:
    target = tmp_path / "big"

    def stop_half_way() -> None:
        with files.partial(target) as descriptor:
            os.write(descriptor, b"half")
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        stop_half_way()
    assert list(tmp_path.iterdir()) == []
    with files.partial(target, mode=0o640) as descriptor:
        os.write(descriptor, b"whole")
        assert not target.exists()
    assert target.read_bytes() == b"whole"
    assert target.stat().st_mode & 0o777 == 0o640


def test_partial_reports_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(NoSpace), files.partial(tmp_path / "big"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["", "/etc/passwd", "..", "a/../../b", "a\0b", "out/x", "out", "../root2/x", "."])
def test_inside_refuses_what_leaves(tmp_path: Path, name: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "root2").mkdir()
    (root / "out").symlink_to(tmp_path)
    with pytest.raises(ParameterError):
        files.inside(root, name)


def test_inside_allows_what_stays(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "in").symlink_to(tmp_path / "a")
    assert files.inside(tmp_path, "a/new file") == tmp_path.resolve() / "a" / "new file"
    assert files.inside(tmp_path, "in/x") == tmp_path.resolve() / "in" / "x"
    assert files.inside(tmp_path, "...").name == "..."


@given(st.text(alphabet="./a\0", max_size=12))
def test_inside_never_gives_a_path_outside(name: str) -> None:
    root = Path("/nonexistent/root")
    try:
        path = files.inside(root, name)
    except ParameterError:
        return
    assert Path(os.path.normpath(path)).is_relative_to(root)
    assert Path(os.path.normpath(path)) != root


def test_remove_tree_stays_inside_and_follows_no_link(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "a" / "b").mkdir(parents=True)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("x")
    (root / "a" / "link").symlink_to(outside)
    (root / "link").symlink_to(outside)
    for bad in ("", "..", "../outside", "link/kept", "/", ".", str(outside)):
        with pytest.raises(ParameterError):
            files.remove_tree(root, bad)
    files.remove_tree(root, "link")
    files.remove_tree(root, "a")
    files.remove_tree(root, "a")
    files.remove_tree(root, "gone/deeper")
    assert list(root.iterdir()) == []
    assert (outside / "kept").exists()


def test_space_and_reservation(tmp_path: Path) -> None:
    known = files.space(tmp_path)
    assert 0 < known.available <= known.total
    files.require_space(tmp_path, 1)
    with pytest.raises(NoSpace, match="are needed"):
        files.require_space(tmp_path, known.total * 2)
    with pytest.raises(NotFound):
        files.space(tmp_path / "absent")
    with (tmp_path / "f").open("wb") as handle:
        files.allocate(handle.fileno(), 1 << 20)
        with pytest.raises(NoSpace, match="only"):  # refused before it eats the disk
            files.allocate(handle.fileno(), known.total * 4)
    assert (tmp_path / "f").stat().st_size == 1 << 20
    assert (tmp_path / "f").stat().st_blocks * 512 >= 1 << 20


def test_failed_reservation_gives_back_what_it_took(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill_up(descriptor: int, _size: int) -> None:
        os.ftruncate(descriptor, 4096)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files, "_fallocate", fill_up)
    with (tmp_path / "f").open("wb") as handle, pytest.raises(NoSpace):
        files.allocate(handle.fileno(), 1 << 20)
    assert (tmp_path / "f").stat().st_size == 0


def test_lock_excludes_and_names_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with files.FileLock(path) as held:
        started = time.monotonic()
        with pytest.raises(Locked, match=f"held by process {os.getpid()}"):
            files.FileLock(path, timeout=0.1).acquire()
        assert time.monotonic() - started < 2
        with pytest.raises(Failure, match="already held"):
            held.acquire()
    with files.FileLock(path, timeout=0):
        pass


def test_lock_waits_for_its_turn(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    first = files.FileLock(path)
    first.acquire()
    threading.Timer(0.1, first.release).start()
    with files.FileLock(path, timeout=5):
        assert first.descriptor is None


def test_lock_dies_with_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    ready, done = os.pipe()
    child = os.fork()
    if child == 0:
        files.FileLock(path).acquire()
        os.write(done, b"x")
        time.sleep(30)
        os._exit(0)
    os.read(ready, 1)
    with pytest.raises(Locked, match=str(child)):
        files.FileLock(path, timeout=0).acquire()
    os.kill(child, 9)
    os.waitpid(child, 0)
    files.FileLock(path, timeout=1).acquire()
    os.close(ready)
    os.close(done)


def test_is_private(tmp_path: Path) -> None:
    files.write_atomic(tmp_path / "key", b"k")
    assert files.is_private(tmp_path / "key")
    (tmp_path / "key").chmod(0o640)
    assert not files.is_private(tmp_path / "key")


def test_direct_access(tmp_path: Path) -> None:
    assert not files.takes_direct(Path("/proc/version"))
    assert files.takes_direct(tmp_path / "missing"), "whoever opens it will say what is wrong"
