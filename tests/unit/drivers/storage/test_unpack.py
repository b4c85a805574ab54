# SPDX-License-Identifier: AGPL-3.0-or-later
"""Compressed files are unpacked by the usual programs, in a jail."""

import gzip
import shutil
import subprocess
from pathlib import Path

import pytest

from orrery.drivers.storage.unpack import require_program, unpack
from orrery.errors import Cancelled, Failure

DATA = bytes(range(256)) * 20_000


def packed(path: Path, compression: str) -> Path:
    if compression == "gz":
        path.write_bytes(gzip.compress(DATA[:1000]) + gzip.compress(DATA[1000:]))
        return path
    program = {"zst": "zstd", "lzo": "lzop"}[compression]
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    path.write_bytes(subprocess.run([program, "-c"], input=DATA, capture_output=True, check=True).stdout)
    return path


@pytest.mark.parametrize("compression", ["gz", "zst", "lzo"])
def test_unpack(tmp_path: Path, compression: str) -> None:
    source = packed(tmp_path / "packed", compression)
    source.chmod(0o600)
    target = tmp_path / "plain"
    target.touch()
    seen: list[int] = []
    assert unpack(source, compression, target, seen.append) == len(DATA)
    assert target.read_bytes() == DATA
    assert seen == sorted(seen)
    assert seen[-1] == len(DATA)


def test_what_is_not_packed(tmp_path: Path) -> None:
    source, target = tmp_path / "packed", tmp_path / "plain"
    source.write_bytes(b"plain text")
    target.touch()
    with pytest.raises(Failure, match=r"unable to unpack.*format"):
        unpack(source, "gz", target, lambda done: None)


def test_it_can_be_stopped(tmp_path: Path) -> None:
    """A few kilobytes that would fill the disk."""
    source, target = tmp_path / "packed", tmp_path / "plain"
    source.write_bytes(gzip.compress(bytes(256 << 20), 1))
    target.touch()

    def stop(done: int) -> None:
        if done > 4 << 20:
            raise Cancelled

    with pytest.raises(Cancelled):
        unpack(source, "gz", target, stop)
    assert target.stat().st_size < 32 << 20


def test_unknown_and_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Failure, match="not known"):
        require_program("rar")
    monkeypatch.setattr("orrery.system.process.SEARCH_PATH", "/nonexistent")
    with pytest.raises(Failure, match="'lzop' is not installed"):
        require_program("lzo")
