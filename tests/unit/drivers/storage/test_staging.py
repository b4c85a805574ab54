# SPDX-License-Identifier: AGPL-3.0-or-later
"""Staged files get their names in one step, also on file systems that know only the older ways."""

import ctypes
import errno
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orrery.drivers.storage import staging
from orrery.drivers.storage.staging import StagedName
from orrery.errors import AlreadyExists, Failure
from orrery.system import process
from orrery.system.process import ProcessId

NODES = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9-]{0,20}[A-Za-z0-9])?", fullmatch=True)


@given(node=NODES, token=st.binary(min_size=8, max_size=8), pid=st.integers(1, 1 << 22), start=st.integers(0, 1 << 60))
def test_names_survive_a_round_trip(node: str, token: bytes, pid: int, start: int) -> None:
    name = StagedName(node, token.hex(), ProcessId(pid, start))
    assert StagedName.parse(str(name)) == name


@given(text=st.text(max_size=60))
def test_other_names_are_none(text: str) -> None:
    parsed = StagedName.parse(text)
    assert parsed is None or str(parsed) == text


def test_the_dead_lose_their_files(tmp_path: Path) -> None:
    gone = tmp_path / str(StagedName("n1", "0" * 16, ProcessId(1 << 22, 1)))
    reused = tmp_path / str(StagedName("n1", "1" * 16, ProcessId(os.getpid(), 1)))
    foreign = tmp_path / str(StagedName("n2", "2" * 16, ProcessId(1 << 22, 1)))
    for path in (gone, reused, foreign):
        path.touch()
    mine = staging.create(tmp_path, "n1")
    parsed = StagedName.parse(mine.name)
    assert parsed is not None
    assert parsed.owner == process.identity(os.getpid())
    assert staging.sweep(tmp_path, "n1") == 2
    assert set(tmp_path.iterdir()) == {mine, foreign}
    assert staging.sweep(tmp_path / "absent", "n1") == 0


@pytest.fixture(params=["renameat2", "link"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    if request.param == "link":

        class Old:
            @staticmethod
            def renameat2(*_: object) -> int:
                ctypes.set_errno(errno.EINVAL)
                return -1

        monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: Old)
    return request.param


def test_place(tmp_path: Path, way: str) -> None:
    target = tmp_path / "target"
    first = staging.create(tmp_path, "n1")
    first.write_bytes(b"one")
    staging.place(first, target)
    second = staging.create(tmp_path, "n1")
    second.write_bytes(b"two")
    with pytest.raises(AlreadyExists):
        staging.place(second, target)
    assert target.read_bytes() == b"one"
    staging.place(second, target, replace=True)
    assert target.read_bytes() == b"two"
    assert list(tmp_path.iterdir()) == [target]
    assert target.stat().st_nlink == 1


def test_a_link_in_the_place_is_not_followed(tmp_path: Path, way: str) -> None:
    victim, target = tmp_path / "victim", tmp_path / "target"
    victim.write_bytes(b"victim")
    target.symlink_to(victim)
    staged = staging.create(tmp_path, "n1")
    with pytest.raises(AlreadyExists):
        staging.place(staged, target)
    staging.place(staged, target, replace=True)
    assert victim.read_bytes() == b"victim"
    assert not target.is_symlink()


@pytest.mark.parametrize("act", [staging.adopt, staging.discard])
def test_only_staged_files_are_touched(tmp_path: Path, act: Any) -> None:
    path = tmp_path / "vm-100-disk-0.raw"
    path.touch()
    with pytest.raises(Failure, match="not a staged file"):
        act(path)
    assert path.exists()
