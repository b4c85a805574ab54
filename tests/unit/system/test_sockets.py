# SPDX-License-Identifier: AGPL-3.0-or-later
"""Unix sockets at long paths, with rights from the first moment."""

import os
import socket
import stat
from pathlib import Path

import pytest

from orrery.errors import Failure
from orrery.system import sockets


@pytest.fixture
def deep(tmp_path: Path) -> Path:
    folder = tmp_path / ("x" * 100) / ("y" * 100)
    folder.mkdir(parents=True)
    return folder / "api.sock"


def test_talk_below_a_long_path(deep: Path) -> None:
    assert len(str(deep)) > 200
    with sockets.listen_unix(deep) as server, sockets.connect_unix(deep, timeout=5) as client:
        accepted, _ = server.accept()
        with accepted:
            client.sendall(b"hello")
            assert accepted.recv(10) == b"hello"
            assert sockets.peer(accepted) == sockets.Peer(os.getpid(), os.geteuid(), os.getegid())
    assert [path.name for path in deep.parent.iterdir()] == ["api.sock"]


def test_mode_and_owner(deep: Path) -> None:
    before = os.umask(0)
    try:
        with sockets.listen_unix(deep, mode=0o660):
            assert stat.S_IMODE(deep.stat().st_mode) == 0o660
        if os.geteuid() == 0:
            with sockets.listen_unix(deep, uid=1234, gid=2345):
                assert (deep.stat().st_uid, deep.stat().st_gid, stat.S_IMODE(deep.stat().st_mode)) == (
                    1234,
                    2345,
                    0o600,
                )
    finally:
        os.umask(before)


def test_what_an_earlier_process_left_is_replaced(deep: Path) -> None:
    sockets.listen_unix(deep).close()
    with pytest.raises(ConnectionRefusedError):
        sockets.connect_unix(deep)
    with sockets.listen_unix(deep), sockets.connect_unix(deep):
        pass


def test_other_things_are_not_replaced(deep: Path) -> None:
    deep.write_text("precious")
    with pytest.raises(Failure, match="is in the way"):
        sockets.listen_unix(deep)
    assert deep.read_text() == "precious"


def test_nobody_listens(deep: Path) -> None:
    with pytest.raises(FileNotFoundError):
        sockets.connect_unix(deep)
    with pytest.raises(FileNotFoundError):
        sockets.connect_unix(deep.parent / "absent" / "s")
    with pytest.raises(Failure, match="longer than"):
        sockets.listen_unix(deep.with_name("n" * 70))


def test_short_path_for_libraries(deep: Path) -> None:
    with sockets.listen_unix(deep), sockets.short_path(deep) as short:
        assert len(short) < 108
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(short)
