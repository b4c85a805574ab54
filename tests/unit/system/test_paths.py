# SPDX-License-Identifier: AGPL-3.0-or-later
"""The places of a root."""

import os
from pathlib import Path

import pytest

from orrery.errors import Failure, ParameterError
from orrery.system.paths import Paths

UPID = "UPID:n1:0000A1B2:00C3D4E5:6720A1BC:qmstart:100:root@pam:"


def test_everything_lies_below_the_root(tmp_path: Path) -> None:
    paths = Paths.of(tmp_path)
    named = [getattr(paths, name) for name in dir(Paths) if isinstance(getattr(Paths, name), property)]
    files = [path for path in named if isinstance(path, Path)] + [paths.guest_run(100), paths.task_log(UPID)]
    assert len(files) > 20
    assert all(path.is_relative_to(tmp_path) for path in files)


def test_installed_places() -> None:
    paths = Paths.of(None)
    assert (paths.etc, paths.lib, paths.log, paths.run) == tuple(
        map(Path, ("/etc/orrery", "/var/lib/orrery", "/var/log/orrery", "/run/orrery"))
    )


def test_root_hash_follows_the_real_folder(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert Paths.of(tmp_path / "link").root_hash == Paths.of(tmp_path / "a").root_hash
    assert Paths.of(tmp_path / "a").root_hash != Paths.of(tmp_path / "b").root_hash
    assert len(Paths.of(None).root_hash) == 6


def test_task_log_is_spread_by_start_time() -> None:
    assert Paths.of(None).task_log(UPID) == Path("/var/log/orrery/tasks/BC") / UPID
    assert Paths.of(None).task_run(UPID) == Path("/run/orrery/tasks") / UPID


@pytest.mark.parametrize(
    "upid", ["", "../../etc/passwd", UPID + "/../x", UPID.replace("n1", "n/1"), "UPID:n:1:2:3:x:y:z:", UPID + "x" * 250]
)
def test_task_log_refuses_what_is_no_upid(upid: str) -> None:
    with pytest.raises(ParameterError):
        Paths.of(None).task_log(upid)


def test_create_makes_private_folders_again_and_again(tmp_path: Path) -> None:
    paths = Paths.of(tmp_path / "node")
    paths.create(front=(os.geteuid(), os.getegid()))
    paths.keys.chmod(0o755)
    paths.create()
    for folder in (paths.etc, paths.lib, paths.log, paths.run, paths.keys, paths.local_storage, paths.nginx_log):
        assert folder.stat().st_mode & 0o7777 == 0o700
    assert paths.front.stat().st_mode & 0o7777 == 0o750


def test_create_gives_the_front_its_own(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may give folders away")
    paths = Paths.of(tmp_path / "node")
    paths.create(front=(12345, 23456))
    assert (paths.nginx_log.stat().st_uid, paths.nginx_log.stat().st_gid) == (12345, 23456)
    assert (paths.front.stat().st_uid, paths.front.stat().st_gid) == (0, 23456)


def test_create_says_what_is_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "etc").write_text("a file")
    with pytest.raises(Failure, match="unable to make the folder"):
        Paths.of(tmp_path).create()
